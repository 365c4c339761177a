"""The operator as it runs in a pod: with the token and the certificate of files that are renewed under it.

    python tests/in_pod.py FOLDER [the operator's arguments]

FOLDER stands for /var/run/secrets/kubernetes.io/serviceaccount. KUBERNETES_SERVICE_HOST and _PORT say where the API
server is, as in every pod.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from world import OperatorProcess


@dataclass
class OperatorInPod(OperatorProcess):
    """That process; `kubeconfig` is the folder of its service account."""

    port: int = field(kw_only=True)
    """Of the API server on loopback."""

    def program(self) -> list[str]:
        """This file."""
        return [str(Path(__file__)), str(self.kubeconfig)]

    def credentials(self) -> dict[str, str]:
        """As the kubelet sets it."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def renew(self, token: str) -> None:
        """Write another token, as the kubelet does: in one step."""
        new = self.kubeconfig / "token.new"
        new.write_text(token)
        new.rename(self.kubeconfig / "token")


def main() -> None:
    """Put the folder in the place of the usual one, and run the operator."""
    from kubernetes.aio.config import incluster_config

    from finetune_operator import __main__, client

    folder = Path(sys.argv.pop(1))
    incluster_config.SERVICE_TOKEN_FILENAME = client.IN_CLUSTER = __main__.IN_CLUSTER = str(folder / "token")
    incluster_config.SERVICE_CERT_FILENAME = str(folder / "ca.crt")
    __main__.main()


if __name__ == "__main__":
    main()
