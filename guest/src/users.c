/* Users and groups from /etc/passwd and /etc/group, read again only when the files change. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

enum { DATABASE_MAX = 1 << 20 };

static struct database {
    const char *path;
    char *text; /* NUL-terminated; never NULL after refresh() */
    struct timespec changed;
    ino_t inode;
    off_t size;
} passwd = {.path = "/etc/passwd"}, group = {.path = "/etc/group"};

static char nothing[] = "";
static struct user cached; /* the last user found */
static bool cached_valid;

static void load(struct database *database) {
    if (database->text != nothing) free(database->text);
    database->text = nothing;
    int fd = open(rooted(database->path), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char *text = fd < 0 || database->size > DATABASE_MAX ? NULL : malloc((size_t)database->size + 1);
    ssize_t got = text ? read(fd, text, (size_t)database->size) : -1;
    if (fd >= 0) close(fd);
    if (got < 0) {
        free(text);
        return;
    }
    text[got] = 0;
    database->text = text;
}

static void refresh(struct database *database) {
    struct stat now = {0};
    bool there = stat(rooted(database->path), &now) == 0 && S_ISREG(now.st_mode);
    if (!there) now = (struct stat){0};
    if (database->text && now.st_ctim.tv_sec == database->changed.tv_sec && now.st_size == database->size &&
        now.st_ctim.tv_nsec == database->changed.tv_nsec && now.st_ino == database->inode)
        return;
    database->changed = now.st_ctim;
    database->inode = now.st_ino;
    database->size = now.st_size;
    cached_valid = false;
    load(database);
}

/* Cut the line at *at into its colon-separated columns, without changing it. False at the end of the text. */
struct column {
    const char *start;
    size_t size;
};
static bool next_line(const char **at, struct column *columns, size_t count) {
    if (!**at) return false;
    const char *end = strchrnul(*at, '\n'), *from = *at;
    for (size_t i = 0; i < count; i++) {
        const char *colon = memchr(from, ':', (size_t)(end - from));
        const char *stop = colon ? colon : end;
        columns[i] = (struct column){from, (size_t)(stop - from)};
        from = colon ? colon + 1 : end;
    }
    *at = *end ? end + 1 : end;
    return true;
}

static bool same(const struct column *column, const char *text) {
    return column->size == strlen(text) && memcmp(column->start, text, column->size) == 0;
}

static bool number(const struct column *column, uint32_t *value) {
    char digits[16], *end;
    if (column->size == 0 || column->size >= sizeof digits || column->start[0] < '0' || column->start[0] > '9') return false;
    memcpy(digits, column->start, column->size);
    digits[column->size] = 0;
    unsigned long long read = strtoull(digits, &end, 10);
    *value = (uint32_t)read;
    return !*end && read < UINT32_MAX;
}

static bool copy(char *to, size_t capacity, const struct column *column) {
    if (column->size >= capacity) return false;
    memcpy(to, column->start, column->size);
    to[column->size] = 0;
    return true;
}

static bool is_member(const struct column *members, const char *name) {
    const char *from = members->start, *end = from + members->size;
    while (from < end) {
        const char *comma = memchr(from, ',', (size_t)(end - from));
        const char *stop = comma ? comma : end;
        if (same(&(struct column){from, (size_t)(stop - from)}, name)) return true;
        from = stop + 1;
    }
    return false;
}

static void find_groups(struct user *user) {
    struct column columns[4];
    uint32_t gid;
    user->groups[user->group_count++] = user->gid;
    for (const char *at = group.text; next_line(&at, columns, 4);) {
        if (!is_member(&columns[3], user->name) || !number(&columns[2], &gid) || gid == user->gid) continue;
        if (user->group_count < sizeof user->groups / sizeof *user->groups) user->groups[user->group_count++] = gid;
    }
}

/* A user of the table; also the number of one that is in no table, who then is in group 0 and at home in /. */
static const struct user *find(const char *name) {
    struct column columns[7];
    char *end;
    unsigned long wanted = strtoul(name, &end, 10);
    bool by_number = *name >= '0' && *name <= '9' && !*end;
    refresh(&passwd);
    refresh(&group);
    if (cached_valid && !by_number && strcmp(cached.name, name) == 0) return &cached;
    for (const char *at = passwd.text; next_line(&at, columns, 7);) {
        uint32_t uid, gid;
        if (!number(&columns[2], &uid) || !number(&columns[3], &gid)) continue;
        if (by_number ? uid != wanted : !same(&columns[0], name)) continue;
        struct user user = {.uid = uid, .gid = gid};
        if (!copy(user.name, sizeof user.name, &columns[0]) || !copy(user.home, sizeof user.home, &columns[5]) ||
            !copy(user.shell, sizeof user.shell, &columns[6]))
            return NULL;
        if (user.home[0] != '/') strcpy(user.home, "/");
        if (!user.shell[0]) strcpy(user.shell, "/bin/sh");
        find_groups(&user);
        cached = user;
        cached_valid = true;
        return &cached;
    }
    if (!by_number || wanted >= UINT32_MAX) return NULL;
    cached = (struct user){.uid = (uid_t)wanted, .group_count = 1, .home = "/", .shell = "/bin/sh"};
    snprintf(cached.name, sizeof cached.name, "%lu", wanted);
    cached_valid = true;
    return &cached;
}

static bool find_group(const char *name, gid_t *gid) {
    struct column columns[3], wanted = {name, strlen(name)};
    uint32_t found;
    for (const char *at = group.text; next_line(&at, columns, 3);)
        if (same(&columns[0], name) && number(&columns[2], gid)) return true;
    if (!number(&wanted, &found)) return false;
    *gid = found;
    return true;
}

const struct user *user_find(const char *name) {
    static struct user regrouped;
    const char *colon = strchr(name, ':');
    if (!colon) return find(name);
    char alone[sizeof regrouped.name];
    if (!copy(alone, sizeof alone, &(struct column){name, (size_t)(colon - name)})) return NULL;
    const struct user *found = find(alone);
    if (!found) return NULL;
    regrouped = *found;
    if (!find_group(colon + 1, &regrouped.gid)) return NULL;
    regrouped.groups[0] = regrouped.gid;
    regrouped.group_count = 1;
    return &regrouped;
}

/* The name in the database whose third column is the number; decimal when there is none. */
static const char *name_of(struct database *database, uint32_t id, char *buffer, size_t capacity) {
    struct column columns[3];
    uint32_t number_there;
    for (const char *at = database->text ? database->text : nothing; next_line(&at, columns, 3);)
        if (number(&columns[2], &number_there) && number_there == id && copy(buffer, capacity, &columns[0])) return buffer;
    snprintf(buffer, capacity, "%u", id);
    return buffer;
}

const char *user_name(uid_t uid) {
    static char buffer[64];
    return cached_valid && cached.uid == uid ? cached.name : name_of(&passwd, uid, buffer, sizeof buffer);
}

const char *group_name(gid_t gid) {
    static char buffer[64];
    static gid_t last;
    static ino_t last_inode;
    static struct timespec last_changed;
    if (buffer[0] && last == gid && last_inode == group.inode && last_changed.tv_nsec == group.changed.tv_nsec &&
        last_changed.tv_sec == group.changed.tv_sec)
        return buffer;
    last = gid;
    last_inode = group.inode;
    last_changed = group.changed;
    return name_of(&group, gid, buffer, sizeof buffer);
}
