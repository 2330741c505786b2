/* What a program does to a filesystem, timed without an interpreter in between.
 *
 *     client OPERATION < NAMES                    in the current directory, one name a line
 *     client OPERATION FILE BLOCK COUNT           bytes of one file
 *
 * Prints nanoseconds of the whole, of the first and of the last thousand operations. Whatever the
 * operation must not answer ends the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PART = 1000, SMALL = 4096, ROOM = 64 * 1024 };

static char room[ROOM];

static void fail(const char *name)
{
    perror(name);
    exit(1);
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int opened(const char *name, int flags)
{
    int fd = open(name, flags | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(name);
    return fd;
}

static void wrote(int fd, const void *bytes, size_t size)
{
    if (write(fd, bytes, size) != (ssize_t)size)
        fail("write");
}

/* Operations on a name. */

static void do_stat(const char *name)
{
    struct stat status;
    if (lstat(name, &status) != 0)
        fail(name);
}

static void do_missing(const char *name)
{
    struct stat status;
    if (lstat(name, &status) == 0 || errno != ENOENT)
        fail(name);
}

static void do_open(const char *name)
{
    close(opened(name, O_RDONLY));
}

static void do_read(const char *name)
{
    int fd = opened(name, O_RDONLY);
    if (read(fd, room, ROOM) <= 0)
        fail(name);
    close(fd);
}

static void do_create(const char *name)
{
    int fd = opened(name, O_WRONLY | O_CREAT | O_EXCL);
    wrote(fd, room, SMALL);
    close(fd);
}

static void do_touch(const char *name)
{
    close(opened(name, O_WRONLY | O_CREAT | O_EXCL));
}

static void do_append(const char *name)
{
    int fd = opened(name, O_WRONLY | O_APPEND);
    wrote(fd, "x", 1);
    close(fd);
}

static void do_unlink(const char *name)
{
    if (unlink(name) != 0)
        fail(name);
}

static void do_rename(const char *name)
{
    char other[4096];
    snprintf(other, sizeof other, "%s.new", name);
    if (rename(name, other) != 0)
        fail(name);
}

static const struct {
    const char *name;
    void (*act)(const char *name);
} OPERATIONS[] = {
    {"stat", do_stat},     {"missing", do_missing}, {"open", do_open},
    {"read", do_read},     {"create", do_create},   {"touch", do_touch},
    {"append", do_append}, {"unlink", do_unlink},   {"rename", do_rename},
};

static void on_names(void (*act)(const char *name))
{
    char **names = NULL, *line = NULL;
    size_t length = 0, count = 0, space = 0;
    ssize_t got;
    while ((got = getline(&line, &length, stdin)) > 0) {
        line[got - 1] = 0;
        if (count == space) {
            space = space * 2 + 1024;
            names = realloc(names, space * sizeof *names);
        }
        names[count++] = strdup(line);
    }
    size_t part = count < PART ? count : PART;
    long long start = now(), first = start, last = start;
    for (size_t number = 0; number < count; number++) {
        if (number == count - part)
            last = now();
        act(names[number]);
        if (number == part - 1)
            first = now();
    }
    long long end = now();
    printf("%lld %lld %lld\n", end - start, first - start, end - last);
}

/* Operations on bytes: `count` blocks of `block` bytes. The file is open before the clock starts. */

static unsigned long long place = 88172645463325252ULL;

static size_t chosen(size_t count)
{
    place ^= place << 13;
    place ^= place >> 7;
    place ^= place << 17;
    return place % count;
}

static void on_bytes(const char *what, const char *name, size_t block, size_t count)
{
    int writing = strcmp(what, "writeall") == 0;
    int fd = opened(name, writing ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY);
    char *bytes = malloc(block);
    volatile char seen = 0;
    memset(bytes, 1, block);
    struct stat status;
    if (fstat(fd, &status) != 0)
        fail(name);
    size_t blocks = status.st_size / block;
    long long start = now();
    if (strcmp(what, "mapall") == 0) {
        char *map = mmap(NULL, count * block, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            fail(name);
        for (size_t at = 0; at < count * block; at += 4096)
            seen += map[at];
        munmap(map, count * block);
    } else if (strcmp(what, "pick") == 0) {
        for (size_t number = 0; number < count; number++)
            if (pread(fd, bytes, block, chosen(blocks) * block) != (ssize_t)block)
                fail(name);
    } else {
        for (size_t number = 0; number < count; number++)
            if (writing)
                wrote(fd, bytes, block);
            else if (read(fd, bytes, block) != (ssize_t)block)
                fail(name);
    }
    long long end = now();
    close(fd);
    printf("%lld 0 0\n", end - start);
}

int main(int count, char **words)
{
    if (count == 5) {
        on_bytes(words[1], words[2], strtoul(words[3], NULL, 10), strtoul(words[4], NULL, 10));
        return 0;
    }
    for (size_t number = 0; number < sizeof OPERATIONS / sizeof *OPERATIONS; number++)
        if (count == 2 && strcmp(words[1], OPERATIONS[number].name) == 0) {
            on_names(OPERATIONS[number].act);
            return 0;
        }
    fprintf(stderr, "client: what is to be done?\n");
    return 2;
}
