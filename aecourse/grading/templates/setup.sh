#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the container of the autograder.
set -euo pipefail
cd /autograder/source
chmod -R go-rwx /autograder/source # tests and their seeds are for root alone: student code runs as another user
apt-get update
apt-get install --yes python3 python3-venv
python3 -m venv /opt/aecourse
# Put an index here that has PyTorch without a GPU's libraries: a tenth of the size, see PyTorch's own page.
TORCH_INDEX=${TORCH_INDEX:-}
/opt/aecourse/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep ^torch requirements.txt)"
/opt/aecourse/bin/pip install --no-cache-dir --requirement requirements.txt
chmod -R go+rX /opt/aecourse
