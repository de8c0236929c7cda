#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stddef.h>

#define RING_SIZE 4

/* A queue of at most RING_SIZE numbers. All zero is empty. */
struct ring {
	int items[RING_SIZE];
	size_t first;
	size_t count;
};

bool ring_push(struct ring *ring, int item);
bool ring_pop(struct ring *ring, int *item);

#endif
