/* File systems as they are elsewhere, for test_locks.py: preloaded, it makes flock fail or lie.

   FLOCK_SHIM=none: the kernel cannot lock there (ENOLCK).
   FLOCK_SHIM=nfs: the same, nor can it swap two names.
   FLOCK_SHIM=lies: every lock is granted. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>

static int is_set(const char *mode) {
    const char *set = getenv("FLOCK_SHIM");
    return set && strcmp(set, mode) == 0;
}

int flock(int fd, int operation) {
    if (is_set("lies"))
        return 0;
    if (is_set("none") || is_set("nfs")) {
        errno = ENOLCK;
        return -1;
    }
    int (*real)(int, int) = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    return real(fd, operation);
}

/* filelock swaps names through syscall(2). */
long syscall(long number, ...) {
    long given[6];
    va_list rest;
    va_start(rest, number);
    for (int index = 0; index < 6; index++)
        given[index] = va_arg(rest, long);
    va_end(rest);
    if (is_set("nfs") && number == SYS_renameat2 && (given[4] & RENAME_EXCHANGE)) {
        errno = EINVAL;
        return -1;
    }
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
