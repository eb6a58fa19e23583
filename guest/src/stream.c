/* Streams: who owns which id, windows, and the run queue that shares the loop fairly between them. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

enum { BUCKETS = 256, OPENINGS_MAX = 16 };

static struct stream *table[BUCKETS], *graveyard;
static struct stream *queue, **queue_end = &queue;
static size_t stream_count;
static uint32_t own_id;

/* An OPEN that comes in several frames. */
static struct opening {
    uint32_t id;
    size_t size, capacity;
    uint8_t *bytes;
} openings[OPENINGS_MAX];

/* ---- the table ---- */

struct stream *stream_find(uint32_t id) {
    struct stream *stream = table[id % BUCKETS];
    while (stream && stream->id != id) stream = stream->next;
    return stream;
}

bool stream_adopt(struct stream *stream, const struct kind *kind, uint32_t id) {
    if (stream_count >= STREAMS_MAX) return false;
    stream->kind = kind;
    stream->id = id;
    stream->send_window = stream->receive_window = WINDOW;
    stream->next = table[id % BUCKETS];
    table[id % BUCKETS] = stream;
    stream_count++;
    return true;
}

void *stream_new(size_t size, const struct kind *kind, uint32_t id) {
    struct stream *stream = calloc(1, size);
    if (stream && stream_adopt(stream, kind, id)) return stream;
    free(stream);
    return NULL;
}

uint32_t stream_own_id(void) {
    do own_id += 2;
    while (own_id == 0 || stream_find(own_id));
    return own_id;
}

void stream_each(void (*visit)(struct stream *)) {
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct stream *stream = table[i], *next; stream; stream = next) {
            next = stream->next;
            visit(stream);
        }
}

void stream_drop(struct stream *stream) {
    struct stream **at = &table[stream->id % BUCKETS];
    while (*at != stream) at = &(*at)->next;
    *at = stream->next;
    stream_count--;
    stream->over = true;
    stream->kind->close(stream);
    stream->next = graveyard;
    graveyard = stream;
}

void stream_end(struct stream *stream, uint32_t error) {
    link_put(END, 0, stream->id, &error, 4);
    stream_drop(stream);
}

void stream_bury(void) {
    for (struct stream **at = &graveyard; *at;) {
        struct stream *stream = *at;
        if (stream->queued) {
            at = &stream->next;
            continue;
        }
        *at = stream->next;
        free(stream);
    }
}

/* ---- the run queue ---- */

void stream_enqueue(struct stream *stream) {
    if (stream->queued || stream->over) return;
    stream->queued = true;
    stream->queue_next = NULL;
    *queue_end = stream;
    queue_end = &stream->queue_next;
}

void stream_wake(struct source *source) { stream_enqueue(source->owner); }

bool stream_runnable(void) { return queue && !link_full(); }

void stream_run_queue(void) {
    struct stream *last = queue ? (struct stream *)((char *)queue_end - offsetof(struct stream, queue_next)) : NULL;
    while (stream_runnable()) {
        struct stream *stream = queue;
        queue = stream->queue_next;
        if (!queue) queue_end = &queue;
        stream->queued = false;
        if (!stream->over) stream->kind->run(stream);
        if (stream == last) break; /* what was queued meanwhile waits for the next turn */
    }
}

int stream_pump(struct stream *stream, struct source *source, uint8_t channel) {
    if (source->empty) return -1;
    if (!source->readable || !stream->send_window) return 0;
    if (link_full()) return 1;
    size_t room = stream->send_window < PAYLOAD_MAX ? stream->send_window : PAYLOAD_MAX;
    uint8_t *at = link_begin(DATA, channel, stream->id, room);
    ssize_t got = read(source->fd, at, room);
    int error = errno;
    if (got > 0) {
        link_commit((size_t)got);
        stream->send_window -= (uint32_t)got;
        if (source->flows && !source->hangup && (size_t)got < room) source->readable = false; /* empty: news make an edge */
        return source->readable;
    }
    struct out nothing = {0};
    link_send(&nothing);
    if (got == 0) return -1;
    if (error == EINTR) return 1;
    if (error != EAGAIN) return -1 - error;
    source->readable = false;
    return 0;
}

/* ---- bytes from the host ---- */

void stream_grant(struct stream *stream, size_t consumed) {
    stream->consumed += (uint32_t)consumed;
    if (stream->consumed < WINDOW / 4 || stream->host_eof) return;
    link_put(GRANT, 0, stream->id, &stream->consumed, 4);
    stream->receive_window += stream->consumed;
    stream->consumed = 0;
}

bool backlog_add(struct backlog *backlog, const uint8_t *bytes, size_t size) {
    if (backlog->start && backlog->capacity - backlog->start - backlog->size < size) {
        memmove(backlog->bytes, backlog->bytes + backlog->start, backlog->size);
        backlog->start = 0;
    }
    if (backlog->capacity - backlog->size < size) {
        size_t capacity = backlog->size + size + PAYLOAD_MAX;
        uint8_t *grown = realloc(backlog->bytes, capacity);
        if (!grown) return false;
        backlog->bytes = grown;
        backlog->capacity = capacity;
    }
    memcpy(backlog->bytes + backlog->start + backlog->size, bytes, size);
    backlog->size += size;
    return true;
}

void backlog_take(struct backlog *backlog, size_t size) {
    backlog->start += size;
    backlog->size -= size;
    if (!backlog->size) backlog_free(backlog);
}

void backlog_free(struct backlog *backlog) {
    free(backlog->bytes);
    *backlog = (struct backlog){0};
}

/* ---- answers ---- */

void reply_ok(uint32_t id, uint8_t flags) {
    uint32_t none = 0;
    link_put(REPLY, flags, id, &none, 4);
}

void reply_error(uint32_t id, int error, const char *format, ...) {
    char message[PATH_MAX + 256];
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    struct out out = link_fields(REPLY, FIN, id);
    put_raw(&out, 4, (uint32_t)error);
    put_text(&out, 1, message);
    link_send(&out);
}

/* ---- dispatch ---- */

static void perform(uint32_t id, uint8_t op, uint8_t *bytes, size_t size) {
    static const struct {
        uint8_t op;
        void (*perform)(uint32_t, struct request *);
    } ops[] = {
        {OP_EXEC, op_exec}, {OP_SIGNAL, op_signal}, {OP_STAT, op_stat}, {OP_LIST, op_list}, {OP_MKDIR, op_mkdir},
        {OP_MOVE, op_move}, {OP_REMOVE, op_remove}, {OP_READ, op_read}, {OP_WRITE, op_write}, {OP_WATCH, op_watch},
        {OP_SYNC_WATCH, op_sync_watch}, {OP_DIAL, op_dial}, {OP_STATS, op_stats}, {OP_PACK, op_pack},
        {OP_UNPACK, op_unpack},
    };
    struct request request;
    if (quiescing()) {
        reply_error(id, EBUSY, "the machine is being captured");
        return;
    }
    if (!request_parse(&request, bytes, size)) {
        reply_error(id, EINVAL, "malformed fields");
        return;
    }
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (ops[i].op == op) {
            ops[i].perform(id, &request);
            return;
        }
    reply_error(id, ENOSYS, "unknown op %u", op);
}

static struct opening *opening_find(uint32_t id) {
    for (size_t i = 0; i < OPENINGS_MAX; i++)
        if (openings[i].id == id) return &openings[i];
    return NULL;
}

static void opening_close(struct opening *opening) {
    free(opening->bytes);
    *opening = (struct opening){0};
}

static bool opening_add(struct opening *opening, const uint8_t *bytes, size_t size) {
    if (opening->size + size > REQUEST_MAX) return false;
    if (opening->size + size + 1 > opening->capacity) {
        size_t capacity = 2 * (opening->size + size) + 1;
        uint8_t *grown = realloc(opening->bytes, capacity);
        if (!grown) return false;
        opening->bytes = grown;
        opening->capacity = capacity;
    }
    memcpy(opening->bytes + opening->size, bytes, size);
    opening->size += size;
    return true;
}

/* False: a protocol error. */
static bool open_frame(uint8_t flags, uint32_t id, uint8_t *payload, size_t size) {
    struct opening *opening = opening_find(id);
    if (!(id & 1) || flags & ~MORE || stream_find(id) || (!opening && size < 1)) return false;
    if (!opening && !(flags & MORE)) {
        perform(id, payload[0], payload + 1, size - 1);
        return true;
    }
    if (!opening && !(opening = opening_find(0))) return false;
    opening->id = id;
    bool fits = opening_add(opening, payload, size);
    if (fits && flags & MORE) return true;
    if (fits) perform(id, opening->bytes[0], opening->bytes + 1, opening->size - 1);
    else reply_error(id, E2BIG, "request too large");
    opening_close(opening);
    return true;
}

static bool data_frame(struct stream *stream, const uint8_t *payload, size_t size) {
    if (!stream->kind->data || stream->host_eof || size > stream->receive_window) return false;
    stream->receive_window -= (uint32_t)size;
    stream->kind->data(stream, payload, size);
    return true;
}

static bool control_frame(struct stream *stream, uint8_t *payload, size_t size) {
    struct request request;
    if (size < 1 || !stream->kind->control || !request_parse(&request, payload + 1, size - 1)) return false;
    stream->kind->control(stream, payload[0], &request);
    return true;
}

static bool reply_frame(struct stream *stream, uint8_t *payload, size_t size) {
    struct request request;
    uint32_t error;
    if (size < 4 || !stream->kind->reply || !request_parse(&request, payload + 4, size - 4)) return false;
    memcpy(&error, payload, 4);
    stream->kind->reply(stream, error, &request);
    return true;
}

static bool grant_frame(struct stream *stream, const uint8_t *payload, size_t size) {
    uint32_t more;
    if (size != 4) return false;
    memcpy(&more, payload, 4);
    if (more > UINT32_MAX - stream->send_window) return false;
    stream->send_window += more;
    stream_enqueue(stream);
    return true;
}

static bool end_frame(struct stream *stream, const uint8_t *payload) {
    uint32_t error;
    memcpy(&error, payload, 4);
    if (stream->kind->end) stream->kind->end(stream, error);
    else stream_drop(stream);
    return true;
}

static void close_frame(struct stream *stream) {
    if (!stream->kind->lasting) stream_end(stream, 0);
}

/* A frame for a stream that exists; false: a protocol error. */
static bool known_frame(struct stream *stream, uint8_t type, uint8_t flags, uint8_t *payload, size_t size) {
    bool own = !(stream->id & 1);
    if (flags && type != DATA && type != END_OF_DATA && !(type == REPLY && flags == FIN)) return false;
    switch (type) {
    case DATA:
        return flags <= 3 && data_frame(stream, payload, size);
    case END_OF_DATA:
        if (flags > 3 || !stream->kind->eof) return false;
        if (!stream->host_eof) {
            stream->host_eof = true;
            stream->kind->eof(stream);
        }
        return true;
    case GRANT:
        return grant_frame(stream, payload, size);
    case CONTROL:
        return control_frame(stream, payload, size);
    case REPLY:
        return reply_frame(stream, payload, size);
    case CLOSE:
        close_frame(stream);
        return true;
    case END:
        if (!own || size < 4) return false;
        return end_frame(stream, payload);
    default:
        return false;
    }
}

static void forget(struct stream *stream) {
    if (!stream->kind->lasting) stream_drop(stream);
}

static bool link_frame(uint8_t type, uint8_t flags, uint8_t *payload, size_t size) {
    struct request request;
    if (flags) return false;
    switch (type) {
    case ATTACH:
        if (!request_parse(&request, payload, size)) return false;
        for (size_t i = 0; i < OPENINGS_MAX; i++) opening_close(&openings[i]);
        stream_each(tunnel_abort);
        stream_each(forget);
        attach(&request);
        return true;
    case QUIESCE:
        quiesce_begin();
        return true;
    case UNQUIESCE:
        quiesce_end();
        return true;
    case RELIEVE:
        relieve();
        return true;
    default:
        return false;
    }
}

void stream_frame(uint8_t type, uint8_t flags, uint32_t id, uint8_t *payload, size_t size) {
    if (id == 0) {
        link_frame(type, flags, payload, size); /* an error here has nobody to be told to */
        return;
    }
    struct stream *stream = stream_find(id);
    bool right = type >= OPEN && type <= CONTROL && type != EVENT;
    if (right && type == OPEN) right = open_frame(flags, id, payload, size);
    else if (right && stream) right = known_frame(stream, type, flags, payload, size);
    else if (right && type == CLOSE && !exec_forget(id)) { /* late, or an opening given up */
        struct opening *opening = opening_find(id);
        if (opening) opening_close(opening);
    }
    if (right) return;
    struct opening *opening = opening_find(id);
    if (opening) opening_close(opening);
    if ((stream = stream_find(id))) forget(stream);
    link_put(CLOSE, 0, id, NULL, 0);
}
