#ifndef WORDS_H
#define WORDS_H

/* How many words a text has; a word is what stands between white space. */
size_t count_words(const char *text);

#endif
