/* Paths and what is known about them: resolving a request's path, making parents, entries. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "agent.h"

enum { XATTRS_MAX = 16 << 10 };
static const char METADATA[] = "user.e2b.";

const char *rooted(const char *path) {
    static char buffer[PATH_MAX];
    if (!settings.native) return path;
    snprintf(buffer, sizeof buffer, "%s%s", settings.native, path);
    return buffer;
}

/* Clean an absolute path in place: no `.`, `..`, `//` nor slash at the end. */
static void clean(char *path) {
    char *to = path;
    for (const char *from = path; *from;) {
        while (*from == '/') from++;
        size_t size = strcspn(from, "/");
        if (size == 2 && from[0] == '.' && from[1] == '.') {
            while (to > path && *--to != '/') {}
        } else if (size && !(size == 1 && from[0] == '.')) {
            *to++ = '/';
            memmove(to, from, size);
            to += size;
        }
        from += size;
    }
    if (to == path) *to++ = '/';
    *to = 0;
}

int path_resolve(char out[PATH_MAX], const struct user *user, const char *path) {
    const char *base = "";
    if (path[0] == '~' && (path[1] == '/' || !path[1])) {
        base = user->home;
        path++;
    } else if (path[0] != '/') {
        base = user->home;
    }
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return ENAMETOOLONG;
    clean(out);
    return 0;
}

bool place_find(struct place *place, struct request *request, uint32_t id) {
    const char *name = request_text(request, 1, "user"), *path = request_text(request, 2, "");
    if (request->bad) {
        reply_error(id, EINVAL, "malformed path or user");
        return false;
    }
    place->user = user_find(name);
    if (!place->user) {
        reply_error(id, EINVAL, "invalid username: '%.64s'", name);
        return false;
    }
    int error = path_resolve(place->path, place->user, path);
    if (error) reply_error(id, error, "%s", strerror(error));
    return !error;
}

int make_parents(const char *path, const struct user *user) {
    char part[PATH_MAX];
    struct stat info;
    strcpy(part, path);
    char *end = strrchr(part, '/');
    if (!end || end == part) return 0;
    *end = 0;
    if (stat(part, &info) == 0) return S_ISDIR(info.st_mode) ? 0 : ENOTDIR;
    if (errno != ENOENT) return errno;
    for (char *at = part;;) {
        at = strchrnul(at + 1, '/');
        char was = *at;
        *at = 0;
        if (mkdir(part, 0755) == 0) {
            if (chown(part, user->uid, user->gid)) return errno;
        } else if (errno != EEXIST) {
            return errno;
        }
        if (!was) return 0;
        *at = was;
    }
}

static uint8_t type_of(mode_t mode) { return S_ISREG(mode) ? 1 : S_ISDIR(mode) ? 2 : 3; }

static void put_metadata(struct out *out, const char *path) {
    char names[4096];
    size_t budget = XATTRS_MAX;
    ssize_t size = listxattr(path, names, sizeof names);
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(names + at) + 1) {
        char pair[XATTRS_MAX];
        size_t name_size = strlen(names + at) + 1;
        if (strncmp(names + at, METADATA, sizeof METADATA - 1) || name_size >= budget) continue;
        memcpy(pair, names + at, name_size);
        ssize_t value = getxattr(path, names + at, pair + name_size, budget - name_size);
        if (value < 0) continue;
        put_bytes(out, 10, pair, name_size + (size_t)value);
        budget -= name_size + (size_t)value;
    }
}

int entry_put(struct out *out, const char *path, int fd, struct stat *seen) {
    struct stat info, target;
    char resolved[PATH_MAX];
    if (lstat(path, &info)) return errno;
    if (seen) *seen = info;
    bool link = S_ISLNK(info.st_mode);
    uint8_t type = type_of(info.st_mode);
    if (link) {
        type = stat(path, &target) ? 3 : type_of(target.st_mode);
        if (!realpath(path, resolved)) snprintf(resolved, sizeof resolved, "%s", path);
    }
    if (link && fd >= 0 && fstat(fd, &info)) return errno;
    const char *name = strrchr(path, '/');
    size_t mark = nest_begin(out, 30);
    put_text(out, 1, name && name[1] ? name + 1 : "/");
    put_uint(out, 2, 1, type);
    put_text(out, 3, path);
    put_uint(out, 4, 8, (uint64_t)info.st_size);
    put_uint(out, 5, 4, info.st_mode & 07777);
    put_text(out, 6, user_name(info.st_uid));
    put_text(out, 7, group_name(info.st_gid));
    put_uint(out, 8, 8, (uint64_t)(info.st_mtim.tv_sec * 1000000000LL + info.st_mtim.tv_nsec));
    if (link) put_text(out, 9, resolved);
    else put_metadata(out, path);
    put_uint(out, 11, 4, info.st_uid);
    put_uint(out, 12, 4, info.st_gid);
    nest_end(out, mark);
    return 0;
}

bool reply_entry(uint32_t id, uint8_t flags, const char *path, int fd) {
    struct out out = link_fields(REPLY, flags, id);
    put_raw(&out, 4, 0);
    int error = entry_put(&out, path, fd, NULL);
    if (error) {
        out.bytes = NULL; /* take the frame back */
        link_send(&out);
        reply_error(id, error, "%s: %s", path, strerror(error));
        return false;
    }
    link_send(&out);
    return true;
}

int set_metadata(int fd, const struct field *fields, size_t count, bool fresh) {
    char names[4096];
    ssize_t size = fresh ? 0 : flistxattr(fd, names, sizeof names);
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(names + at) + 1)
        if (!strncmp(names + at, METADATA, sizeof METADATA - 1)) fremovexattr(fd, names + at);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *value = fields[i].value, *end = memchr(value, 0, fields[i].size);
        if (!end || strncmp((const char *)value, METADATA, sizeof METADATA - 1)) return EINVAL;
        size_t name = (size_t)(end - value) + 1;
        if (fsetxattr(fd, (const char *)value, end + 1, fields[i].size - name, 0)) return errno;
    }
    return 0;
}
