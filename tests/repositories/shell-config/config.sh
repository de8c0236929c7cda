#!/bin/sh
# Prints the value of a name.
set -eu
sed -n "s/^ *$2 *= *//p" "$1"
