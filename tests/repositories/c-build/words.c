#include <ctype.h>

#include "words.h"

size_t count_words(char *text)
{
	size_t count = 0;
	int inside = 0;

	for (; *text != 0; text++) {
		if (isspace((unsigned char)*text)) {
			inside = 0;
		} else if (!inside) {
			inside = 1;
			count++;
		}
	}
	return count;
}
