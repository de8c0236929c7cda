#include <stdio.h>

#include "words.h"

int main(void)
{
	const char *texts[] = {"", "one", "  two words\n", "tab\tand\nline"};
	const size_t counts[] = {0, 1, 2, 3};
	int failed = 0;

	for (int i = 0; i < 4; i++) {
		if (count_words(texts[i]) != counts[i]) {
			printf("FAILED: \"%s\"\n", texts[i]);
			failed = 1;
		}
	}
	if (!failed)
		puts("ok");
	return failed;
}
