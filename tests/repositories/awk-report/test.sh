set -eu
got=$(awk -f report.awk data.txt)
wanted=$(cat expected.txt)
[ "$got" = "$wanted" ] && echo ok && exit 0
printf 'FAILED: got\n%s\nnot\n%s\n' "$got" "$wanted"
exit 1
