"""Two nodes of Ray on loopback, in processes of their own: `python ray_nodes.py`, started by test_ray.

It prints the address and the process IDs of each node's raylet as a line of JSON, and ends with its input.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

LOOPBACK = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80_000_000}


def main() -> None:
    """Start the nodes, and stop them at the end of the input."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **LOOPBACK})
    try:
        second = cluster.add_node(num_cpus=1, **LOOPBACK)
        nodes = [cluster.head_node, second]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
