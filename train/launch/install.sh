#!/usr/bin/env bash
# Installs this checkout, in the versions of locks/, into a new virtual environment:
#
#   train/launch/install.sh DIRECTORY [EXTRAS]      # such as: install.sh /opt/deberta_jax tpu,gcs
#
# It needs Python 3 with pip, of any age: the package is installed with Python 3.12 or newer, which uv finds, or fetches
# where there is none. The Dockerfile and tpu_vm.sh call this.
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,7p' "$0" >&2
  exit 2
fi
directory=$1 extras=${2:-}
checkout=$(cd "$(dirname "$0")/../.." && pwd)
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$tools" uv
uv="$tools/bin/uv"
# A Python that is fetched stays beside the environment, where every user can read it.
export UV_PYTHON_INSTALL_DIR="$directory.python"
"$uv" venv --quiet --clear --python '>=3.12,<3.15' "$directory"
version=$("$directory/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$uv" pip install --quiet --python "$directory/bin/python" --constraint "$checkout/locks/python$version.txt" \
  "$checkout${extras:+[$extras]}"
"$directory/bin/deberta-jax" --version
