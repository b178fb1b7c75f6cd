#!/bin/sh
# Are the four tools there that this project does not install? One sentence with the fix if not.
# PYTHON and JAVA_HOME choose others than those on the PATH.
set -u

fail() {
    echo "$1" >&2
    exit 4
}

PYTHON=${PYTHON:-python3.11}
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
[ "$version" = 3.11 ] || fail \
    "Python 3.11 is needed and '$PYTHON' is ${version:-missing}: install it (Debian: apt install python3.11 python3.11-venv), or name one with: make setup PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || fail \
    "'$PYTHON' cannot make virtual environments: install its venv package (Debian: apt install python3.11-venv)"

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
[ "$version" = 17 ] || fail \
    "Java 17 is needed and '$java' is ${version:-missing}: install it (Debian: apt install openjdk-17-jdk-headless), or name one with: make setup JAVA_HOME=/path/to/jdk-17"

command -v mvn >/dev/null 2>&1 || fail \
    "Maven is needed to fetch the jars and 'mvn' is missing: install it (Debian: apt install maven)"
version=$(mvn -v 2>/dev/null | sed -n 's/.*Apache Maven \([0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
case $version in
3.[6-9] | 3.[1-9][0-9] | [4-9].*) ;;
*) fail "Maven 3.6 or newer is needed and 'mvn' is ${version:-broken}: install a newer one (Debian: apt install maven)" ;;
esac
