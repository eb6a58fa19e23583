/* WATCH: one inotify descriptor per stream; directories still to be watched wait in a queue. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

enum { CREATED = 1, WRITTEN, REMOVED, RENAMED, CHANGED_MODE, OVERFLOWED };
enum { DIRECTORIES_MAX = 1 << 16, DIRECTORIES_PER_STEP = 16, SYNCS_MAX = 8, ECHOES = 64 };
static const uint32_t MASK =
    IN_CREATE | IN_MODIFY | IN_ATTRIB | IN_DELETE | IN_DELETE_SELF | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF | IN_ONLYDIR;

/* A directory that is to be watched; `fresh`: it came after the watch began, so what it holds is news. */
struct todo {
    struct todo *next;
    bool fresh;
    char name[];
};

struct watch {
    struct stream stream;
    struct source source;
    bool recursive, armed;
    char **names; /* by watch descriptor: the directory's name below `path`, "" for itself; NULL: not watched */
    size_t names_size, directories;
    struct todo *todo, **todo_end;
    uint32_t syncs[SYNCS_MAX];
    size_t sync_count;
    uint64_t echoes[ECHOES]; /* creations we found by looking; the kernel may tell of them too */
    size_t echo_next;
    char path[PATH_MAX];
    size_t at, filled;
    _Alignas(struct inotify_event) char events[4096];
};

static void watch_close(struct stream *stream) {
    struct watch *watch = (struct watch *)stream;
    source_close(&watch->source);
    for (size_t i = 0; i < watch->sync_count; i++) reply_error(watch->syncs[i], ECANCELED, "the watch was closed");
    for (size_t i = 0; i < watch->names_size; i++) free(watch->names[i]);
    free(watch->names);
    for (struct todo *todo; (todo = watch->todo); free(todo)) watch->todo = todo->next;
}

static void emit(struct watch *watch, uint8_t event, const char *name) {
    struct out out = link_fields(EVENT, 0, watch->stream.id);
    put_raw(&out, 1, 2);
    put_uint(&out, 24, 1, event);
    put_text(&out, 25, *name ? name : ".");
    link_send(&out);
}

static bool join(char out[PATH_MAX], const char *directory, const char *name) {
    return snprintf(out, PATH_MAX, "%s%s%s", directory, *directory && *name ? "/" : "", name) < PATH_MAX;
}

static bool push(struct watch *watch, const char *name, bool fresh) {
    struct todo *todo = watch->directories < DIRECTORIES_MAX ? malloc(sizeof *todo + strlen(name) + 1) : NULL;
    if (!todo) return false;
    watch->directories++;
    *todo = (struct todo){.fresh = fresh};
    strcpy(todo->name, name);
    *watch->todo_end = todo;
    watch->todo_end = &todo->next;
    return true;
}

static bool set_name(struct watch *watch, int wd, const char *name) {
    size_t index = (size_t)wd;
    if (index >= watch->names_size) {
        size_t size = 2 * index + 16;
        char **grown = realloc(watch->names, size * sizeof *grown);
        if (!grown) return false;
        memset(grown + watch->names_size, 0, (size - watch->names_size) * sizeof *grown);
        watch->names = grown;
        watch->names_size = size;
    }
    free(watch->names[index]);
    return (watch->names[index] = strdup(name));
}

static uint64_t echo_of(int wd, const char *name) {
    uint64_t hash = 1469598103934665603ULL ^ (uint64_t)wd;
    while (*name) hash = (hash ^ (uint8_t)*name++) * 1099511628211ULL;
    return hash | 1;
}

/* True when that creation has been told already; it is forgotten then. */
static bool was_told(struct watch *watch, int wd, const char *name) {
    uint64_t echo = echo_of(wd, name);
    for (size_t i = 0; i < ECHOES; i++)
        if (watch->echoes[i] == echo) {
            watch->echoes[i] = 0;
            return true;
        }
    return false;
}

static void found(struct watch *watch, int wd, int fd, const char *name, const char *relative, bool fresh) {
    struct stat info;
    if (fstatat(fd, name, &info, AT_SYMLINK_NOFOLLOW)) return;
    if (fresh) {
        watch->echoes[watch->echo_next++ % ECHOES] = echo_of(wd, name);
        emit(watch, CREATED, relative);
        if (S_ISREG(info.st_mode) && info.st_size) emit(watch, WRITTEN, relative);
    }
    if (S_ISDIR(info.st_mode) && !push(watch, relative, fresh)) emit(watch, OVERFLOWED, "");
}

/* Watch one directory and queue those in it. errno. */
static int watch_directory(struct watch *watch, const char *name, bool fresh) {
    char path[PATH_MAX], relative[PATH_MAX];
    if (!join(path, watch->path, name)) return ENAMETOOLONG;
    int wd = inotify_add_watch(watch->source.fd, path, MASK | (*name ? IN_DONT_FOLLOW : 0));
    if (wd < 0) return errno;
    if (!set_name(watch, wd, name)) return ENOMEM;
    if (!watch->recursive) return 0;
    DIR *dir = opendir(path);
    if (!dir) return errno;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (!fresh && entry->d_type != DT_DIR && entry->d_type != DT_UNKNOWN) continue;
        if (join(relative, name, entry->d_name)) found(watch, wd, dirfd(dir), entry->d_name, relative, fresh);
    }
    closedir(dir);
    return 0;
}

/* A directory left: what was below it is not below us any more (if it only moved, it will be found anew). */
static void unwatch(struct watch *watch, const char *name) {
    size_t size = strlen(name);
    for (size_t wd = 0; wd < watch->names_size; wd++) {
        const char *other = watch->names[wd];
        if (other && !strncmp(other, name, size) && (!other[size] || other[size] == '/')) inotify_rm_watch(watch->source.fd, (int)wd);
    }
}

static void handle_event(struct watch *watch, const struct inotify_event *event) {
    char name[PATH_MAX];
    if (event->mask & IN_Q_OVERFLOW) emit(watch, OVERFLOWED, "");
    size_t wd = (size_t)event->wd;
    if (event->wd < 0 || wd >= watch->names_size || !watch->names[wd]) return;
    if (event->mask & IN_IGNORED) {
        if (*watch->names[wd]) watch->directories--;
        free(watch->names[wd]);
        watch->names[wd] = NULL;
        return;
    }
    bool itself = !event->len;
    if (itself && *watch->names[wd]) return; /* its parent tells it, with a name */
    if (!join(name, watch->names[wd], itself ? "" : event->name)) return;
    bool directory = event->mask & IN_ISDIR && !itself && watch->recursive;
    if (event->mask & (IN_MOVED_FROM | IN_MOVE_SELF)) emit(watch, RENAMED, name);
    if (event->mask & IN_MOVED_FROM && directory) unwatch(watch, name);
    if (event->mask & (IN_CREATE | IN_MOVED_TO)) {
        if (was_told(watch, event->wd, event->name)) return;
        emit(watch, CREATED, name);
        if (directory && !push(watch, name, true)) emit(watch, OVERFLOWED, "");
    }
    if (event->mask & IN_MODIFY) emit(watch, WRITTEN, name);
    if (event->mask & IN_ATTRIB) emit(watch, CHANGED_MODE, name);
    if (event->mask & (IN_DELETE | IN_DELETE_SELF)) emit(watch, REMOVED, name);
}

static void do_todo(struct watch *watch) {
    struct todo *todo = watch->todo;
    watch->todo = todo->next;
    if (!watch->todo) watch->todo_end = &watch->todo;
    if (watch_directory(watch, todo->name, todo->fresh)) watch->directories--; /* gone, or not for us */
    free(todo);
}

/* One event, or some more of them from the kernel. False when there are none left. */
static bool next_event(struct watch *watch) {
    if (watch->at == watch->filled) {
        ssize_t got = watch->source.readable ? read(watch->source.fd, watch->events, sizeof watch->events) : 0;
        if (got < 0 && errno == EINTR) return true;
        if (got <= 0) {
            watch->source.readable = false;
            return false;
        }
        watch->at = 0;
        watch->filled = (size_t)got;
    }
    const struct inotify_event *event = (void *)(watch->events + watch->at);
    watch->at += sizeof *event + event->len;
    handle_event(watch, event);
    return true;
}

static void watch_run(struct stream *stream) {
    struct watch *watch = (struct watch *)stream;
    for (int i = 0; i < 128; i++) {
        if (link_full()) break;
        if (watch->todo) {
            do_todo(watch);
            i += 128 / DIRECTORIES_PER_STEP;
            continue;
        }
        if (!watch->armed) reply_ok(stream->id, 0);
        watch->armed = true;
        if (next_event(watch)) continue;
        for (size_t k = 0; k < watch->sync_count; k++) reply_ok(watch->syncs[k], FIN);
        watch->sync_count = 0;
        return;
    }
    stream_enqueue(stream);
}

static const struct kind watching = {.run = watch_run, .close = watch_close};

void op_watch(uint32_t id, struct request *request) {
    struct place place;
    bool recursive = request_uint(request, 6, 1, 0);
    if (!place_find(&place, request, id)) return;
    struct watch *watch = stream_new(sizeof *watch, &watching, id);
    if (!watch) {
        reply_error(id, ENOMEM, "too many streams");
        return;
    }
    watch->todo_end = &watch->todo;
    watch->recursive = recursive;
    strcpy(watch->path, place.path);
    watch->source = (struct source){.fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), .wake = stream_wake, .owner = &watch->stream};
    int error = watch->source.fd < 0 ? errno : source_add(&watch->source, EPOLLIN);
    if (!error) error = watch_directory(watch, "", false);
    if (error) {
        reply_error(id, error, "%s: %s", place.path, strerror(error));
        stream_drop(&watch->stream);
        return;
    }
    watch_run(&watch->stream);
}

void op_sync_watch(uint32_t id, struct request *request) {
    struct stream *stream = stream_find((uint32_t)request_uint(request, 11, 4, 0));
    struct watch *watch = (struct watch *)stream;
    if (!stream || stream->kind != &watching) reply_error(id, ENOENT, "no such watch");
    else if (watch->sync_count == SYNCS_MAX) reply_error(id, EBUSY, "too many syncs at once");
    else {
        watch->syncs[watch->sync_count++] = id;
        watch->source.readable = true;
        watch_run(stream);
    }
}
