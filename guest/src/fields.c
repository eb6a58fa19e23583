#include "fields.h"

#include <string.h>

static uint64_t little(const uint8_t *bytes, size_t size) {
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

bool field_next(uint8_t *bytes, size_t size, size_t *at, struct field *field) {
    if (size - *at < 5) return false;
    uint32_t length = (uint32_t)little(bytes + *at + 1, 4);
    if (length > size - *at - 5) return false;
    *field = (struct field){bytes[*at], length, bytes + *at + 5};
    *at += 5 + (size_t)length;
    return true;
}

bool request_parse(struct request *request, uint8_t *bytes, size_t size) {
    size_t at = 0;
    struct field field;
    *request = (struct request){.bytes = bytes, .size = size};
    while (field_next(bytes, size, &at, &field)) {
        if (field.tag >= TAGS) continue; /* unknown tags are skipped */
        request->last[field.tag] = field;
        request->count[field.tag]++;
    }
    return at == size;
}

size_t request_all(struct request *request, uint8_t tag, struct field *fields, size_t max) {
    size_t at = 0, count = 0;
    struct field field;
    while (field_next(request->bytes, request->size, &at, &field)) {
        if (field.tag != tag) continue;
        if (count < max) fields[count] = field;
        count++;
    }
    return count;
}

char *field_text(struct request *request, const struct field *field) {
    if (memchr(field->value, 0, field->size)) request->bad = true;
    field->value[field->size] = 0;
    return (char *)field->value;
}

char *request_text(struct request *request, uint8_t tag, const char *otherwise) {
    if (!request->count[tag]) return (char *)otherwise;
    return field_text(request, &request->last[tag]);
}

uint64_t request_uint(struct request *request, uint8_t tag, uint32_t size, uint64_t otherwise) {
    if (!request->count[tag]) return otherwise;
    if (request->last[tag].size != size) {
        request->bad = true;
        return otherwise;
    }
    return little(request->last[tag].value, size);
}

static uint8_t *reserve(struct out *out, size_t size) {
    if (out->over || size > out->capacity - out->size) {
        out->over = true;
        return NULL;
    }
    uint8_t *at = out->bytes + out->size;
    out->size += size;
    return at;
}

void put_raw(struct out *out, uint32_t size, uint64_t value) {
    uint8_t *at = reserve(out, size);
    for (uint32_t i = 0; at && i < size; i++) at[i] = (uint8_t)(value >> (8 * i));
}

void put_bytes(struct out *out, uint8_t tag, const void *value, size_t size) {
    if (out->over || size + 5 > out->capacity - out->size) {
        out->over = true;
        return;
    }
    put_raw(out, 1, tag);
    put_raw(out, 4, size);
    uint8_t *at = reserve(out, size);
    if (at && size) memcpy(at, value, size);
}

void put_text(struct out *out, uint8_t tag, const char *text) { put_bytes(out, tag, text, strlen(text)); }

void put_uint(struct out *out, uint8_t tag, uint32_t size, uint64_t value) {
    put_raw(out, 1, tag);
    put_raw(out, 4, size);
    put_raw(out, size, value);
}

size_t nest_begin(struct out *out, uint8_t tag) {
    put_raw(out, 1, tag);
    put_raw(out, 4, 0);
    return out->size;
}

void nest_end(struct out *out, size_t mark) {
    if (out->over) return;
    size_t size = out->size - mark;
    for (size_t i = 0; i < 4; i++) out->bytes[mark - 4 + i] = (uint8_t)(size >> (8 * i));
}
