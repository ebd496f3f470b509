/* A disk that is slow to read, for test_waiters.py: preloaded, each read at an offset takes SLOW_READ_MS longer. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

static void rest(void) {
    const char *ms = getenv("SLOW_READ_MS");
    if (ms)
        usleep(1000 * atoi(ms));
}

ssize_t preadv64(int fd, const struct iovec *into, int count, off64_t offset) {
    ssize_t (*real)(int, const struct iovec *, int, off64_t) =
        (ssize_t(*)(int, const struct iovec *, int, off64_t))dlsym(RTLD_NEXT, "preadv64");
    rest();
    return real(fd, into, count, offset);
}

ssize_t preadv64v2(int fd, const struct iovec *into, int count, off64_t offset, int flags) {
    ssize_t (*real)(int, const struct iovec *, int, off64_t, int) =
        (ssize_t(*)(int, const struct iovec *, int, off64_t, int))dlsym(RTLD_NEXT, "preadv64v2");
    rest();
    return real(fd, into, count, offset, flags);
}
