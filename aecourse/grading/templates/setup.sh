#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the container of the autograder.
set -euo pipefail
cd /autograder/source
chmod -R go-rwx /autograder/source # tests and their seeds are for root alone: student code runs as another user
apt-get update
apt-get install --yes python3 python3-venv
python3 -m venv /opt/aecourse
# The wheels of PyTorch without a GPU's libraries, which are ten times as large.
/opt/aecourse/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep ^torch requirements.txt)"
/opt/aecourse/bin/pip install --no-cache-dir --requirement requirements.txt
chmod -R go+rX /opt/aecourse
