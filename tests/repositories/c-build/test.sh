set -e
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cc -std=c11 -Wall -Wextra -Werror -o "$out/test" words.c test_words.c
"$out/test"
