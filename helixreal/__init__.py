"""The real executor: serves a scenario with processes over ZeroMQ and real or emulated engines.

It uses the simulator's control plane and node schedulers, and carries out their actions.
"""
