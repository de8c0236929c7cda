# The tests of backup.sh.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
check() {
  if [ "$2" = "$3" ]; then echo "ok: $1"; else echo "FAILED: $1: got '$2', not '$3'"; failed=1; fi
}

mkdir -p "$work/a/b"
echo 1 >"$work/a/one.txt"
echo 2 >"$work/a/b/two.txt"
echo 3 >"$work/a/b/other.md"
check "counts files" "$(sh backup.sh "$work/a" "$work/out")" "2 files"
check "copies them" "$(cat "$work/out/two.txt")" "2"

mkdir -p "$work/my notes"
echo 4 >"$work/my notes/to do.txt"
check "names with spaces" "$(sh backup.sh "$work/my notes" "$work/more" 2>&1 || true)" "1 files"
check "copies those too" "$(cat "$work/more/to do.txt" 2>/dev/null || true)" "4"
exit $failed
