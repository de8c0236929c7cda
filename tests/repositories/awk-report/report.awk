# Reads "name amount" and prints each name's sum, the largest amount last.
{
	sum[$1] += $2
	if (NR == 1 || $2 "" > largest) {
		largest = $2 ""
	}
}

END {
	for (name in sum) {
		print name, sum[name] | "sort"
	}
	close("sort")
	print "largest", largest
}
