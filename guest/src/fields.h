/* Fields: the tag-length-value lists inside frames. The only code that walks bytes somebody else wrote. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TAGS = 32 }; /* every tag of a request is below this */

struct field {
    uint8_t tag;
    uint32_t size;
    uint8_t *value;
};

/* A parsed request: the last field of each tag. The bytes must stay writable, with one spare byte behind them. */
struct request {
    uint8_t *bytes;
    size_t size;
    bool bad; /* a value had the wrong size or a NUL in it */
    struct field last[TAGS];
    uint32_t count[TAGS];
};

/* Walk a list: start with *at == 0. False at its end or when it is malformed (then *at != size). */
bool field_next(uint8_t *bytes, size_t size, size_t *at, struct field *field);
/* False when the list is malformed. */
bool request_parse(struct request *request, uint8_t *bytes, size_t size);
/* Every field of that tag, at most `max`; how many there are. Only before any text has been taken. */
size_t request_all(struct request *request, uint8_t tag, struct field *fields, size_t max);
/* The value as a C string. Ends it in place, over the next tag, so the list cannot be walked again. */
char *field_text(struct request *request, const struct field *field);
char *request_text(struct request *request, uint8_t tag, const char *otherwise);
uint64_t request_uint(struct request *request, uint8_t tag, uint32_t size, uint64_t otherwise);

/* A list being written into a buffer of fixed size; what does not fit sets `over` and is left out. */
struct out {
    uint8_t *bytes;
    size_t size, capacity;
    bool over;
};

void put_bytes(struct out *out, uint8_t tag, const void *value, size_t size);
void put_text(struct out *out, uint8_t tag, const char *text);
void put_uint(struct out *out, uint8_t tag, uint32_t size, uint64_t value);
void put_raw(struct out *out, uint32_t size, uint64_t value);
/* A nested list: its fields are put between the two calls. */
size_t nest_begin(struct out *out, uint8_t tag);
void nest_end(struct out *out, size_t mark);
