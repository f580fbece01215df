#!/bin/sh
# bootstrap.sh PYTHON VENV TORCH [pip arguments for torch]
# Checks what the build needs and says how to install what is missing; makes VENV; sees that it has torch >= 2.6.
set -eu
python=$1 venv=$2 torch=$3
shift 3

need() { # what, then the command for Debian, Fedora and macOS
  printf 'bertfast needs %s. Install it, then run make again:\n' "$1" >&2
  printf '  Debian: %s\n  Fedora: %s\n  macOS:  %s\n' "$2" "$3" "$4" >&2
  exit 1
}

case $(uname) in
  Linux | Darwin) ;;
  *) echo "bertfast runs on Linux and macOS; on Windows use WSL (wsl --install), then make inside it." >&2; exit 1 ;;
esac

command -v "$python" > /dev/null || need "Python 3.10 to 3.14 ($python was not found)" \
  "sudo apt-get install python3 python3-venv python3-dev" "sudo dnf install python3 python3-devel" \
  "brew install python@3.13"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.1[0-4]) ;;
  *) need "Python 3.10 to 3.14 ($python is $version; say: make PYTHON=python3.11)" \
    "sudo apt-get install python3.11 python3.11-venv python3.11-dev" \
    "sudo dnf install python3.11 python3.11-devel" "brew install python@3.11" ;;
esac

"$python" -c 'import venv, ensurepip' 2> /dev/null || need "Python's venv module" \
  "sudo apt-get install python$version-venv" "sudo dnf install python3-libs python3-pip" \
  "brew reinstall python@$version"

header='import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
fedora=python$version-devel
test "$(command -v "$python")" = /usr/bin/python3 && fedora=python3-devel
"$python" -c "$header" || need "Python's C header, Python.h" \
  "sudo apt-get install python$version-dev" "sudo dnf install $fedora" "brew reinstall python@$version"

default=g++
command -v g++ > /dev/null || default=c++
printf '#include <string_view>\nint main() {}\n' |
  ${CXX:-$default} -std=c++17 -x c++ -c - -o /dev/null 2> /dev/null ||
  need "a C++17 compiler (tried: ${CXX:-$default})" "sudo apt-get install g++" \
    "sudo dnf install gcc-c++" "xcode-select --install"

has_torch() {
  "$1" -c '
import sys, torch
sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6))' 2> /dev/null
}

if has_torch "$python"; then
  echo "Making $venv on Python $version; its installed torch is used"
  "$python" -m venv --system-site-packages "$venv"
  # Where PYTHON is itself in a virtual environment, the new one would see the system's packages, not that one's.
  "$python" -c '
import sys, sysconfig
if sys.prefix != sys.base_prefix:
    print(sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sep="\n")' \
    > "$venv/lib/python$version/site-packages/outer_environment.pth"
else
  echo "Making $venv on Python $version"
  "$python" -m venv "$venv"
fi
has_torch "$venv/bin/python" || {
  echo "Installing $torch (once)"
  "$venv/bin/python" -m pip --disable-pip-version-check -q install "$torch" "$@"
}
