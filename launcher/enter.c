// wardian-enter: the first program in a fresh machine. It copies the guest agent from a host descriptor into a sealed
// memory file and becomes it. So an image needs nothing of ours, nobody inside can change the agent, and a snapshot
// carries the very agent it was taken with. No libc: gVisor starts it from a descriptor, where static glibc cannot
// start (its start-up code wants /proc/self/exe to be a path).
//
// Where gVisor was started by `runsc create`, which can only pass stdio, the link is stdin, the agent stdout, and we
// come from a mount that must go.
//
// gVisor covers an empty /tmp with a memory file system. We take it away, so that /tmp is on the disk like the rest.
#include <linux/fcntl.h>
#include <linux/memfd.h>
#include <sys/syscall.h>

enum { AGENT_FD = 6, LINK_FD = 7, COPY = 65536 };

static long sys(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static void need(int ok, int code)
{
    if (!ok) sys(SYS_exit_group, code, 0, 0, 0, 0);
}

__attribute__((used, noreturn)) static void enter(long *stack)
{
    static char buffer[COPY];
    char **argv = (char **)(stack + 1), **environment = argv + stack[0] + 1;
    if (sys(SYS_fcntl, LINK_FD, F_GETFD, 0, 0, 0) < 0) {
        need(sys(SYS_dup2, 0, LINK_FD, 0, 0, 0) >= 0 && sys(SYS_dup2, 1, AGENT_FD, 0, 0, 0) >= 0, 100);
        long null = sys(SYS_open, (long)"/dev/null", O_RDWR, 0, 0, 0);
        need(sys(SYS_dup2, null, 0, 0, 0, 0) == 0 && sys(SYS_dup2, null, 1, 0, 0, 0) == 1, 100);
        sys(SYS_close, null, 0, 0, 0, 0);
        sys(SYS_umount2, (long)"/.wardian", 2 /* MNT_DETACH */, 0, 0, 0);
    }
    long memory = sys(SYS_memfd_create, (long)"wardian-guest", MFD_CLOEXEC | MFD_ALLOW_SEALING, 0, 0, 0);
    long n;
    need(memory >= 0, 101);
    while ((n = sys(SYS_read, AGENT_FD, (long)buffer, COPY, 0, 0)) > 0)
        need(sys(SYS_write, memory, (long)buffer, n, 0, 0) == n, 102);
    need(n == 0, 103);
    sys(SYS_close, AGENT_FD, 0, 0, 0, 0);
    need(!sys(SYS_fcntl, memory, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, 0, 0), 104);
    sys(SYS_umount2, (long)"/tmp", 0, 0, 0, 0); // not there if the image has something in /tmp
    sys(SYS_mkdir, (long)"/tmp", 01777, 0, 0, 0);
    sys(SYS_chmod, (long)"/tmp", 01777, 0, 0, 0);
    sys(SYS_execveat, memory, (long)"", (long)argv, (long)environment, AT_EMPTY_PATH);
    sys(SYS_exit_group, 105, 0, 0, 0, 0);
    __builtin_unreachable();
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call enter\n");
