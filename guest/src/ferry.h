/* Between the ferry (ferry.c), a thread, and the volumes (volume.c) whose packets it carries. */
#pragma once
#include <poll.h>

#include "agent.h"

enum { MOUNTS_MAX = 16 };

/* ---- ferry.c ---- */
int ferry_start(void);   /* errno; once */
void ferry_lock(void);   /* holds for everything that the two share */
void ferry_unlock(void);
void ferry_look(void);   /* have the ferry look at the mounts again */
void ferry_reset(void);  /* another host is there; with the lock */
bool ferry_send(const uint8_t *frame, size_t size); /* false: not now; with the lock */

/* ---- volume.c; by the ferry, with the lock ---- */
void volumes_await(struct pollfd waits[MOUNTS_MAX], bool rest); /* what requests will come from */
bool volumes_ask(const struct pollfd waits[MOUNTS_MAX], bool rest); /* true: something could not be sent now */
bool volumes_carry(const uint8_t *frame, size_t size); /* true: it was a mount's, and was carried over */
void volumes_refuse(void); /* every request that has no answer */
void volumes_abandon(void); /* nobody will answer any more */
