/* What the parts of the agent share: the loop's sources, the link, streams, users and the ops. */
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "fields.h"

#define AGENT_BUILD "wardian-guest 1"
enum {
    PROTOCOL_VERSION = 1,
    HEADER = 8,
    PAYLOAD_MAX = 65536,
    WINDOW = 262144,      /* bytes of DATA each side may send unasked */
    REQUEST_MAX = 2 << 20, /* an OPEN with all its continuations */
    STREAMS_MAX = 4096,
};

enum frame_type {
    ATTACH = 0x01, HELLO, QUIESCE, QUIESCED, UNQUIESCE, RELIEVE, NOTICE,
    OPEN = 0x10, REPLY, DATA, END_OF_DATA, GRANT, EVENT, END, CLOSE, CONTROL,
};
enum { MORE = 1, FIN = 1 }; /* flags */
enum op {
    OP_EXEC = 0x01, OP_SIGNAL,
    OP_STAT = 0x10, OP_LIST, OP_MKDIR, OP_MOVE, OP_REMOVE, OP_READ, OP_WRITE, OP_WATCH, OP_SYNC_WATCH,
    OP_DIAL = 0x20, OP_CONNECT, OP_RESOLVE,
    OP_STATS = 0x30,
    OP_PACK = 0x40, OP_UNPACK,
    OP_MOUNT = 0x50, OP_UNMOUNT,
};

/* ---- main.c: settings and the loop ---- */
struct settings {
    const char *native; /* a directory that stands for / in everything that would change this machine; NULL as pid 1 */
    int link, stream, listener, upper, redirect, dns, fuse; /* descriptors; -1: none given */
    unsigned processes_max;
};
extern struct settings settings;
extern int epoll_fd;

/* Something in the epoll set, edge-triggered: `wake` only notes readiness, work is done from the run queue.
   Being writable is only waited for after a write would have blocked: else every read at the other end wakes us. */
struct source {
    int fd; /* -1 when closed */
    bool readable, writable, hangup;
    bool empty; /* hung up, and nothing left to read */
    uint32_t events; /* what is waited for, always */
    bool flows; /* a pipe or a socket: a short read says that it is empty */
    void (*wake)(struct source *source);
    struct stream *owner;
};
int source_add(struct source *source, uint32_t events); /* errno; closes the fd when it cannot */
void source_await_writable(struct source *source);
void source_close(struct source *source);
pid_t fork_helper(void); /* as fork */
void quiesce_begin(void);
void quiesce_end(void);
bool quiescing(void);
uint64_t now_ms(void); /* monotonic */
void say(const char *format, ...) __attribute__((format(printf, 1, 2))); /* a line on stderr */

/* port.c: a byte stream becomes the link */
void port_start(void);

/* ---- link.c: packets out and in ---- */
void link_start(void);
void link_rearm(void);      /* watch the link afresh: after a restore the socket is another one */
bool link_readable(void);   /* there may be packets, and they may be read */
bool link_receive(void);    /* handle a few packets; false when there are none left */
void link_note_readable(void);
bool link_flush(void);      /* true when nothing waits any more */
void link_flush_all(void);  /* wait until nothing waits any more */
bool link_full(void);       /* sources must not be read now */
void link_drop(void);       /* forget what waits */
void link_lost(void) __attribute__((noreturn)); /* nobody is there any more: the agent ends */
void link_trim(void);       /* give the buffers' memory back; only while they are empty */
uint8_t *link_begin(uint8_t type, uint8_t flags, uint32_t id, size_t room); /* room for a payload ... */
void link_commit(size_t size);                                            /* ... that then got this big */
void link_put(uint8_t type, uint8_t flags, uint32_t id, const void *payload, size_t size);
struct out link_fields(uint8_t type, uint8_t flags, uint32_t id); /* a payload made of fields ... */
void link_send(const struct out *out);                            /* ... that is complete */

/* ---- stream.c ---- */
struct stat;
struct stream;
struct kind {
    void (*run)(struct stream *);                              /* one bounded step of whatever can be done now */
    void (*data)(struct stream *, const uint8_t *, size_t);    /* bytes from the host, within the window */
    void (*eof)(struct stream *);                              /* no more bytes from the host */
    void (*control)(struct stream *, uint8_t verb, struct request *);
    void (*reply)(struct stream *, uint32_t error, struct request *); /* to a stream that we opened */
    void (*end)(struct stream *, uint32_t error);              /* the host's END on a stream that we opened */
    void (*close)(struct stream *);                            /* release everything but the memory */
    bool lasting;                                              /* survives ATTACH and CLOSE (an exec) */
};
struct stream {
    const struct kind *kind;
    uint32_t id, send_window, receive_window, consumed;
    bool queued, over, host_eof;
    struct stream *next, *queue_next;
};

void stream_frame(uint8_t type, uint8_t flags, uint32_t id, uint8_t *payload, size_t size);
void *stream_new(size_t size, const struct kind *kind, uint32_t id); /* NULL: no memory or too many */
bool stream_adopt(struct stream *stream, const struct kind *kind, uint32_t id); /* zeroed memory; false: too many */
uint32_t stream_own_id(void);
struct stream *stream_find(uint32_t id);
void stream_each(void (*visit)(struct stream *));
void stream_wake(struct source *source);      /* a source's wake: put its owner on the run queue */
void stream_enqueue(struct stream *stream);
bool stream_runnable(void);
void stream_run_queue(void);
void stream_bury(void);                       /* free what ended; at the end of a turn of the loop */
void stream_grant(struct stream *stream, size_t consumed);
void stream_end(struct stream *stream, uint32_t error);       /* END, then drop */
void stream_drop(struct stream *stream);                      /* silently */
/* Send what a source holds as DATA, one frame. 1: there may be more; 0: not now; -1: end of file; else -errno - 1. */
int stream_pump(struct stream *stream, struct source *source, uint8_t channel);
void reply_ok(uint32_t id, uint8_t flags);
void reply_error(uint32_t id, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Bytes on their way into the guest that it has not taken yet. */
struct backlog {
    uint8_t *bytes;
    size_t start, size, capacity;
};
bool backlog_add(struct backlog *backlog, const uint8_t *bytes, size_t size);
void backlog_take(struct backlog *backlog, size_t size);
void backlog_free(struct backlog *backlog);

/* ---- users.c ---- */
struct user {
    uid_t uid;
    gid_t gid;
    size_t group_count;
    gid_t groups[64];
    char name[64], home[512], shell[256];
};
/* A name or decimal uid, perhaps with `:group`, which then is the only group; NULL when there is none. */
const struct user *user_find(const char *name);
const char *user_name(uid_t uid);               /* the number when it has no name; valid until the next call */
const char *group_name(gid_t gid);

/* ---- paths.c ---- */
struct place {
    const struct user *user;
    char path[PATH_MAX];
};
const char *rooted(const char *path); /* the path, below settings.native when that is set; valid until the next call */
/* User and path of a request; false when the answer (an error) has been sent. */
bool place_find(struct place *place, struct request *request, uint32_t id);
int path_resolve(char out[PATH_MAX], const struct user *user, const char *path); /* errno */
int make_parents(const char *path, const struct user *user);                   /* errno */
/* The entry (tag 30); errno. Of a symlink with `fd` >= 0, the size and so on are those of the open file it leads to. */
int entry_put(struct out *out, const char *path, int fd, struct stat *seen);
bool reply_entry(uint32_t id, uint8_t flags, const char *path, int fd); /* false: it was an error */
/* Replace the user.e2b.* attributes by these (name NUL value); errno. */
int set_metadata(int fd, const struct field *fields, size_t count, bool fresh);

/* ---- the ops; each answers on the stream of that id ---- */
void op_exec(uint32_t id, struct request *request);
void op_signal(uint32_t id, struct request *request);
void op_stat(uint32_t id, struct request *request);
void op_list(uint32_t id, struct request *request);
void op_mkdir(uint32_t id, struct request *request);
void op_move(uint32_t id, struct request *request);
void op_remove(uint32_t id, struct request *request);
void op_read(uint32_t id, struct request *request);
void op_write(uint32_t id, struct request *request);
void op_watch(uint32_t id, struct request *request);
void op_sync_watch(uint32_t id, struct request *request);
void op_dial(uint32_t id, struct request *request);
void op_stats(uint32_t id, struct request *request);
void op_pack(uint32_t id, struct request *request);
void op_unpack(uint32_t id, struct request *request);
void op_mount(uint32_t id, struct request *request);
void op_unmount(uint32_t id, struct request *request);

/* exec.c */
struct winsize;
void terminal_resize(int master, const struct winsize *size, pid_t session);
void exec_reap(void);
void exec_list(void (*each)(const struct out *process)); /* every exec, as HELLO tells it */
void exec_attached(void);             /* after HELLO: windows afresh, ends told again */
bool exec_forget(uint32_t id);        /* the host has noted this end */
bool processes_exist(void);
void exec_get_ready(void);            /* prepare what the next exec will need, when there is time */

/* tunnel.c: what the guest opens outwards */
void tunnel_listen(void);
void tunnel_abort(struct stream *stream); /* reset the connection when it ends, if it is a tunnel's */
void tunnel_accept(void); /* what has knocked meanwhile */

/* redirect.c: in a machine with a Linux kernel, every address is here, and every TCP connection comes to this socket; errno */
int redirect_all(int listener);

/* ferry.c: the thread that reads the link as soon as there are volumes */
bool ferry_runs(void);
int ferry_descriptor(void);  /* readable when a frame may wait */
bool ferry_waiting(void);    /* a frame does, or the link has ended */
ssize_t ferry_take(uint8_t *frame, size_t capacity); /* the next frame of those that wait; -1: the link has ended */
void ferry_rest(bool rest);  /* carry no more requests over */

/* volume.c */
bool volumes_rest(void);     /* every request has its answer */
void volumes_detach(void);   /* the host is another one: it will mount again */

/* sudo.c */
void sudo_listen(void);
void sudo_accept(void); /* let in who has asked meanwhile */

/* identity.c */
void machine_setup(void);
void attach(struct request *request);

/* memory.c */
void relieve(void);
void guard_check(void);
int guard_timeout(void); /* ms until the next look, -1: none needed */
void guard_start(void);
void hold_everything(bool hold); /* stop every process but us, or let them go on */
