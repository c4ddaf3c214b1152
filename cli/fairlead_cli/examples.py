"""Examples in the help of each verb. Tests parse them, and run those that need no cluster."""

from typing import Final

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "up": ("up", "up model.yaml", "up model.yaml tenants.yaml --workers 2", "up model.yaml --real --plain"),
    "demo": ("demo", "demo --limit 200 --presets dual-hash --presets least-request"),
    "local status": ("local status", "local status qwen2.5-7b", "local status --watch"),
    "status": ("status", "status qwen3-8b -n chat", "status --watch"),
    "check": ("check --pre", "check --wait 120s", "check -o json"),
    "requests": ("requests", "requests --slow --limit 5", "requests qwen3-8b --failed --tenant acme"),
    "explain request": ("explain request", "explain request req-35fc5680-e7728e4ba8522a46 -o wide"),
    "explain route": (
        "explain route qwen3-8b --file prompt.txt",
        'explain route -f request.json --tenant acme --header "x-canary: yes"',
    ),
    "explain scaling": ("explain scaling qwen3-8b", "explain scaling qwen3-8b --at 15m"),
    "explain shadow": ("explain shadow", "explain shadow qwen3-8b-next"),
    "routes": ("routes", "routes -o json"),
    "adapters": ("adapters", "adapters qwen3-8b"),
    "index stats": ("index stats", "index stats qwen3-8b -o wide"),
    "index match": ("index match --model qwen3-8b --tokens tokens.json", "index match --tokens - --adapter sql"),
    "index verify": ("index verify qwen3-8b",),
    "index watch": ("index watch qwen3-8b --count 10", "index watch --kind removed"),
    "rollout status": ("rollout status qwen3-8b", "rollout status qwen3-8b --wait 10m"),
    "rollout pause": ("rollout pause qwen3-8b",),
    "rollout resume": ("rollout resume qwen3-8b --wait 10m",),
    "rollout undo": ("rollout undo qwen3-8b", "rollout undo qwen3-8b --to 3"),
    "rollout promote": ("rollout promote qwen3-8b --wait 120s",),
    "tenants list": ("tenants", "tenants list --file tenants.yaml -o wide"),
    "tenants show": ("tenants show acme", "tenants show acme --file tenants.yaml"),
    "keys create": ("keys create acme ci --expires 90d", "keys create acme ci --file tenants.yaml"),
    "keys list": ("keys list", "keys list acme -o wide"),
    "keys rotate": ("keys rotate acme ci --overlap 1d",),
    "keys revoke": ("keys revoke acme ci", "keys revoke acme ci --digest 3f9a1c"),
    "audit": ("audit --since 1h", "audit --since 2026-11-01 --tenant acme -o json"),
    "usage": ("usage --by tenant,model --last 30d", "usage --from 2026-11-01 --to 2026-11-30 --csv"),
    "cost": ("cost --last 30d", "cost --by tenant,day --focus"),
    "chat": ("chat qwen2.5-7b", 'chat qwen2.5-7b --message "Why is the sky blue?"'),
    "replay-scaling": ("replay-scaling --model qwen3-8b --set target=99%", "replay-scaling recording --since 20m"),
    "support-bundle": ("support-bundle", "support-bundle --out bundle.tar.gz"),
    "airgap images": (
        "airgap images fairlead-0.2.0.tgz",
        "airgap images fairlead-0.2.0.tgz --registry registry.example/team",
    ),
    "version": ("version", "version -o json"),
    "lint": ("lint model.yaml", "lint manifests -o sarif", "lint -"),
    "convert": ("convert config.yaml --out converted.yaml", "convert old.yaml --accelerator nvidia-l4"),
    "catalog list": ("catalog", "catalog list --on nvidia-h100"),
    "catalog show": ("catalog show qwen3-8b --on nvidia-l4", "catalog show llama-3.3-70b --on nvidia-h100 --tensor 4"),
    "replay": ("replay --limit 200", "replay --trace trace.jsonl --rate 5 --out report"),
    "simulate": ("simulate agents --limit 400 --engines 4 --rate 3", "simulate trace.jsonl --presets dual-hash"),
    "completion": ("completion bash", "completion zsh"),
}
"""Words of a verb → its command lines, without the program."""


def example_lines(words: str, program: str) -> list[str]:
    return [f"{program} {line}" for line in EXAMPLES[words]]
