#include <stdio.h>

#include "ring.h"

static int failed;

static void check(const char *what, int got, int wanted)
{
	if (got == wanted)
		return;
	printf("FAILED: %s: got %d, not %d\n", what, got, wanted);
	failed = 1;
}

int main(void)
{
	struct ring ring = {0};
	int item = -1;

	for (int i = 0; i < RING_SIZE; i++)
		check("push into a ring with room", ring_push(&ring, i), 1);
	check("push into a full ring", ring_push(&ring, 9), 0);
	for (int round = 0; round < 3; round++) {
		check("pop", ring_pop(&ring, &item), 1);
		check("first in, first out", item, round);
		check("push again", ring_push(&ring, RING_SIZE + round), 1);
	}
	check("where it begins", (int)ring.first, 3);
	check("pop", ring_pop(&ring, &item), 1);
	check("it wraps around", (int)ring.first, 0);
	if (!failed)
		puts("ok");
	return failed;
}
