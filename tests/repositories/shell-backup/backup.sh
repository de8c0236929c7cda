#!/bin/sh
# Copies every *.txt below a folder into another, flat, and prints how many there were.
set -eu
from=$1
to=$2
mkdir -p "$to"
count=0
for file in $(find "$from" -name '*.txt' | sort); do
  cp "$file" "$to/"
  count=$((count + 1))
done
echo "$count files"
