/* Trees: LIST and REMOVE, a bounded piece at a time. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

/* ---- LIST ---- */

enum {
    NAMES_MAX = 8 << 20,      /* of one directory */
    LEVELS_MAX = 128,
    ENTRIES_BYTES = 96 << 10, /* what is being sent, with room for the biggest entry */
    ENTRIES_PER_STEP = 64,
    READS_PER_STEP = 1024,
};

struct level {
    DIR *dir; /* being read; NULL once the names are sorted */
    char *names;
    size_t names_size, names_capacity, count, at;
    uint32_t *order;
    size_t path_size; /* of the directory, in list.path */
};

struct list {
    struct stream stream;
    uint32_t depth;
    size_t height;
    struct level levels[LEVELS_MAX];
    char path[PATH_MAX];
    size_t sent, filled;
    uint8_t *bytes; /* ENTRIES_BYTES */
};

static void level_close(struct level *level) {
    if (level->dir) closedir(level->dir);
    free(level->names);
    free(level->order);
    *level = (struct level){0};
}

static void list_close(struct stream *stream) {
    struct list *list = (struct list *)stream;
    while (list->height) level_close(&list->levels[--list->height]);
    free(list->bytes);
}

static int compare(const void *a, const void *b, void *names) {
    return strcmp((char *)names + *(const uint32_t *)a, (char *)names + *(const uint32_t *)b);
}

static int level_sort(struct level *level) {
    closedir(level->dir);
    level->dir = NULL;
    level->order = malloc((level->count + 1) * sizeof *level->order);
    if (!level->order) return ENOMEM;
    size_t at = 0;
    for (size_t i = 0; i < level->count; i++, at += strlen(level->names + at) + 1) level->order[i] = (uint32_t)at;
    qsort_r(level->order, level->count, sizeof *level->order, compare, level->names);
    return 0;
}

static int level_read(struct level *level) {
    for (int i = 0; i < READS_PER_STEP; i++) {
        errno = 0;
        struct dirent *entry = readdir(level->dir);
        if (!entry) return errno ? errno : level_sort(level);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        size_t size = strlen(entry->d_name) + 1;
        if (level->names_size + size > level->names_capacity) {
            size_t capacity = level->names_capacity * 2 + 4096;
            char *grown = capacity > NAMES_MAX ? NULL : realloc(level->names, capacity);
            if (!grown) return capacity > NAMES_MAX ? EFBIG : ENOMEM;
            level->names = grown;
            level->names_capacity = capacity;
        }
        memcpy(level->names + level->names_size, entry->d_name, size);
        level->names_size += size;
        level->count++;
    }
    return 0;
}

/* Begin the directory at list.path. One that cannot be read (any more) is passed over, except the first. */
static int level_open(struct list *list) {
    int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK | (list->height ? O_NOFOLLOW : 0);
    int fd = open(list->path, flags);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int error = errno;
        if (fd >= 0) close(fd);
        return error;
    }
    size_t size = strlen(list->path);
    list->levels[list->height++] = (struct level){.dir = dir, .path_size = size == 1 ? 0 : size};
    return 0;
}

/* The next entry of the deepest level into list.bytes. */
static void list_next(struct list *list, struct level *level) {
    if (level->at == level->count) {
        level_close(level);
        list->height--;
        return;
    }
    const char *name = level->names + level->order[level->at++];
    if ((size_t)snprintf(list->path + level->path_size, PATH_MAX - level->path_size, "/%s", name) >= PATH_MAX - level->path_size) return;
    struct out out = {.bytes = list->bytes, .size = list->filled, .capacity = ENTRIES_BYTES};
    struct stat info;
    if (entry_put(&out, list->path, -1, &info) || out.over) return; /* gone meanwhile */
    list->filled = out.size;
    if (S_ISDIR(info.st_mode) && list->height < list->depth && list->height < LEVELS_MAX) level_open(list);
}

static void list_run(struct stream *stream) {
    struct list *list = (struct list *)stream;
    for (int i = 0; i < ENTRIES_PER_STEP && list->height && list->filled < ENTRIES_BYTES / 2; i++) {
        struct level *level = &list->levels[list->height - 1];
        int error = level->dir ? level_read(level) : 0;
        if (error) {
            stream_end(stream, (uint32_t)error);
            return;
        }
        if (!level->dir) list_next(list, level);
    }
    size_t size = list->filled - list->sent;
    if (size > PAYLOAD_MAX) size = PAYLOAD_MAX;
    if (size > stream->send_window) size = stream->send_window;
    if (size && (list->filled >= ENTRIES_BYTES / 2 || !list->height)) {
        link_put(DATA, 0, stream->id, list->bytes + list->sent, size);
        stream->send_window -= (uint32_t)size;
        list->sent += size;
    }
    if (list->sent == list->filled) list->sent = list->filled = 0;
    if (!list->height && !list->filled) stream_end(stream, 0);
    else if (stream->send_window || list->filled < ENTRIES_BYTES / 2) stream_enqueue(stream);
}

static const struct kind listing = {.run = list_run, .close = list_close};

void op_list(uint32_t id, struct request *request) {
    struct place place;
    uint32_t depth = (uint32_t)request_uint(request, 6, 4, 1);
    if (!place_find(&place, request, id)) return;
    struct list *list = stream_new(sizeof *list, &listing, id);
    if (!list) {
        reply_error(id, ENOMEM, "too many streams");
        return;
    }
    list->depth = depth ? depth : 1;
    strcpy(list->path, place.path);
    list->bytes = malloc(ENTRIES_BYTES);
    int error = list->bytes ? level_open(list) : ENOMEM;
    if (error) {
        reply_error(id, error, "%s: %s", place.path, strerror(error));
        stream_drop(&list->stream);
        return;
    }
    reply_ok(id, 0);
    stream_enqueue(&list->stream);
}

/* ---- REMOVE ---- */

enum { OPEN_LEVELS = 48, REMOVALS_PER_STEP = 64 };

struct removal {
    struct stream stream;
    size_t height;
    struct {
        DIR *dir;
        char name[NAME_MAX + 1]; /* in the level above; of the first: unused */
        bool progress;
    } levels[OPEN_LEVELS];
    unsigned lifted;
    char path[PATH_MAX];
};

static void removal_close(struct stream *stream) {
    struct removal *removal = (struct removal *)stream;
    while (removal->height) closedir(removal->levels[--removal->height].dir);
}

static int removal_descend(struct removal *removal, int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int error = errno;
        if (fd >= 0) close(fd);
        return error;
    }
    removal->levels[removal->height].dir = dir;
    removal->levels[removal->height].progress = false;
    snprintf(removal->levels[removal->height].name, NAME_MAX + 1, "%s", removal->height ? name : "");
    removal->height++;
    return 0;
}

/* Deeper than we keep open: lift the directory up to the first level and meet it again there. */
static int removal_lift(struct removal *removal, int parent, const char *name) {
    char lifted[32];
    do snprintf(lifted, sizeof lifted, ".wardian-removing-%u", ++removal->lifted);
    while (faccessat(dirfd(removal->levels[0].dir), lifted, F_OK, AT_SYMLINK_NOFOLLOW) == 0);
    return renameat(parent, name, dirfd(removal->levels[0].dir), lifted) ? errno : 0;
}

/* The deepest directory has been read to its end: remove it, or read again what came in between. */
static int removal_ascend(struct removal *removal) {
    size_t top = removal->height - 1;
    int failed = top ? unlinkat(dirfd(removal->levels[top - 1].dir), removal->levels[top].name, AT_REMOVEDIR) : rmdir(removal->path);
    if (failed && errno == ENOTEMPTY && removal->levels[top].progress) {
        removal->levels[top].progress = false;
        rewinddir(removal->levels[top].dir);
        return 0;
    }
    if (failed && errno != ENOENT) return errno;
    closedir(removal->levels[top].dir);
    removal->height--;
    if (top) removal->levels[top - 1].progress = true;
    return 0;
}

static int removal_step(struct removal *removal) {
    size_t top = removal->height - 1;
    errno = 0;
    struct dirent *entry = readdir(removal->levels[top].dir);
    if (!entry) return errno ? errno : removal_ascend(removal);
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) return 0;
    int parent = dirfd(removal->levels[top].dir);
    if (entry->d_type != DT_DIR) {
        if (unlinkat(parent, entry->d_name, 0) == 0) {
            removal->levels[top].progress = true;
            return 0;
        }
        if (errno == ENOENT) return 0;
        if (errno != EISDIR) return errno;
    }
    int error = removal->height < OPEN_LEVELS ? removal_descend(removal, parent, entry->d_name) : removal_lift(removal, parent, entry->d_name);
    if (!error && removal->height == OPEN_LEVELS && top == OPEN_LEVELS - 1) removal->levels[top].progress = removal->levels[0].progress = true;
    return error == ENOENT ? 0 : error;
}

static void removal_run(struct stream *stream) {
    struct removal *removal = (struct removal *)stream;
    uint32_t id = stream->id;
    for (int i = 0; i < REMOVALS_PER_STEP && removal->height; i++) {
        int error = removal_step(removal);
        if (!error) continue;
        reply_error(id, error, "%s: %s", removal->path, strerror(error));
        stream_drop(stream);
        return;
    }
    if (removal->height) {
        stream_enqueue(stream);
        return;
    }
    reply_ok(id, FIN);
    stream_drop(stream);
}

static const struct kind removing = {.run = removal_run, .close = removal_close};

void op_remove(uint32_t id, struct request *request) {
    struct place place;
    struct stat info;
    int error = 0;
    if (!place_find(&place, request, id)) return;
    if (!strcmp(place.path, "/")) {
        reply_error(id, EBUSY, "will not remove /");
        return;
    }
    if (lstat(place.path, &info)) error = errno;
    else if (!S_ISDIR(info.st_mode)) error = unlink(place.path) ? errno : 0;
    else {
        struct removal *removal = stream_new(sizeof *removal, &removing, id);
        if (removal) {
            strcpy(removal->path, place.path);
            error = removal_descend(removal, AT_FDCWD, place.path);
            if (!error) {
                stream_enqueue(&removal->stream);
                return;
            }
            stream_drop(&removal->stream);
        } else {
            error = ENOMEM;
        }
    }
    if (error && error != ENOENT) reply_error(id, error, "%s: %s", place.path, strerror(error));
    else reply_ok(id, FIN);
}
