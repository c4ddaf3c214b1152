"""The packet filter rules of a node are removed, and no others."""

from e2e.cluster.nodes.network import undo_chains

LISTED = """-P PREROUTING ACCEPT
-P OUTPUT ACCEPT
-N DOCKER
-N KUBE-SERVICES
-N KUBE-MARK-MASQ
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000""".splitlines()


def test_rules_that_lead_into_our_chains_go_first_then_the_chains() -> None:
    assert undo_chains("nat", LISTED).splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-D OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-F KUBE-SERVICES",
        "-F KUBE-MARK-MASQ",
        "-X KUBE-SERVICES",
        "-X KUBE-MARK-MASQ",
        "COMMIT",
    ]


def test_a_table_without_our_chains_is_not_touched() -> None:
    assert undo_chains("nat", [line for line in LISTED if "KUBE" not in line]) == ""
