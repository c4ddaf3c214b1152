"""The autoscaler in a closed loop, simulated: an aggregated plant, kinds of scenario, the loop around a controller.

``load`` and ``scenarios`` make traffic, ``engine`` is one replica in closed form, ``pool`` and ``plant`` are the replicas' lives
and the gateway before them, ``loop`` lets a controller run it.
"""
