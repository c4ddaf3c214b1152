"""The documented command ``python -m fairlead_sim.scaling``; the code is
``fairlead_sim.autoscaling``.
"""
