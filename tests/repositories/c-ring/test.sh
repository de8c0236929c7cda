set -e
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cc -std=c11 -Wall -Wextra -o "$out/test" ring.c test_ring.c
"$out/test"
