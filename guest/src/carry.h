/* Carrying a machine's files: what the helper processes of PACK and UNPACK share, and how a record looks. */
#pragma once
#include "fields.h"

/* Records of the stream, as fields. */
enum record { RECORD_ENTRY = 1, RECORD_CONTENT, RECORD_REMOVE, RECORD_SAME, RECORD_DONE, RECORD_FAILED, RECORD_MOUNT };
/* Fields of an entry; of RECORD_FAILED: errno (ENTRY_SIZE) and message (ENTRY_PATH). */
enum entry_tag {
    ENTRY_PATH = 2, ENTRY_SIZE = 4, ENTRY_MODE, ENTRY_MTIME = 8, ENTRY_TARGET, ENTRY_XATTR, ENTRY_UID, ENTRY_GID,
    ENTRY_LINK, ENTRY_MAJOR, ENTRY_MINOR,
};
enum {
    CARRIED_MAX = 256 << 10, /* the longest record: two paths, and attributes */
    XATTRS_MAX = 64 << 10,   /* names and values of one entry */
    CHUNK = 64000,           /* bytes of content in one record: a frame holds it */
};

/* Both run in a process of their own, with the stream as descriptors 0 and 1, and do not return. */
_Noreturn void pack_files(void);
_Noreturn void unpack_files(void);

void carry_write(const void *bytes, size_t size); /* all of it to the host; ends the process when nobody listens */
/* Tell the host why this cannot go on, and end. `path` may be NULL. */
_Noreturn void carry_fail(int error, const char *path);
_Noreturn void carry_done(void);
