"""The Prefect flows: refs in, refs out, no logic. The only code that imports prefect.

No telemetry leaves the machine unless the user's own environment asks for it.
"""

import os

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The temporary server of a run without one takes 11 s to start, on a busy host more than the 20 s it is given.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}.items():
    os.environ.setdefault(_name, _value)  # before prefect is imported, which reads them once

if "PREFECT_HOME" in os.environ:
    os.makedirs(os.environ["PREFECT_HOME"], exist_ok=True)  # Prefect makes it only where its parent is there
