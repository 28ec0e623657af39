/* The floor under a sandbox: the system calls of one launch, in C, with nothing around them.
 *
 *     cc -O2 -static -o floor floor.c
 *     floor ROOTFS    waits for letters on standard input, and answers each with how long it took, as nanoseconds in
 *                     text:
 *                       x  a sandbox for ROOTFS's /bin/true, from nothing to its end
 *                       p  the same without the program, which is not there yet
 *                       g  that one again: its program, to its end
 *                       s  a sandbox for ROOTFS's /bin/pause, until that runs; it stays
 *                       n  a network namespace, for the next sandbox to be in
 *     floor ROOTFS once
 *                     one `x`, and is done: what a whole command takes that does nothing else
 *     floor ROOTFS COUNT
 *                     COUNT of them, two at a time
 *
 * ROOTFS may be several directories, topmost first, with colons between them.
 *
 * One process with one thread, in a user namespace of its own made once, as Orbit's supervisor is. For each
 * sandbox: clone3 of mount, pid, ipc, uts, cgroup and network namespaces; loopback up; a tmpfs, an overlay of
 * it over ROOTFS, proc, sysfs, a /dev; pivot_root; covers; an init that starts the program by vfork: session,
 * streams, bounding set, ids, no_new_privs, seccomp, execve. The init waits for the program, and the first
 * process for the init. What Orbit does beyond that (a plan that is sent and read, paths that are resolved
 * without following links, descriptors that are handed back) is what the ratio to this program shows.
 *
 * Everything that can fail ends the program with the line that failed. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRY(call)                                                                              \
    do {                                                                                       \
        if ((call) < 0) {                                                                      \
            dprintf(2, "floor.c:%d: %s: %s\n", __LINE__, #call, strerror(errno));              \
            _exit(99);                                                                         \
        }                                                                                      \
    } while (0)

#define INERT (MS_NOSUID | MS_NODEV | MS_NOEXEC)

/* As many instructions as Orbit's default filter, and as short a way through them for most calls. */
#define FILTER_LENGTH 104

static const char *rootfs;
static struct sock_filter filter[FILTER_LENGTH];

static void write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    TRY(fd);
    TRY(write(fd, text, strlen(text)));
    close(fd);
}

static void make_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    TRY(fd);
    if (*text)
        TRY(write(fd, text, strlen(text)));
    close(fd);
}

static void build_filter(void) {
    for (int i = 0; i < FILTER_LENGTH; i++)
        filter[i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 4);
    filter[1] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
    for (int i = 2; i < 10; i++)
        filter[i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 5000 + i, 90, 0);
}

static void loopback_up(void) {
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    TRY(fd);
    TRY(ioctl(fd, SIOCSIFFLAGS, &lo));
    close(fd);
}

static void device(const char *name) {
    char from[64], to[64];
    snprintf(from, sizeof from, "/dev/%s", name);
    snprintf(to, sizeof to, "/mnt/root/dev/%s", name);
    int fd = open(to, O_RDONLY | O_CREAT | O_CLOEXEC, 0666);
    TRY(fd);
    close(fd);
    TRY(mount(from, to, NULL, MS_BIND, NULL));
}

/* What covers the first directory covers all. */
static void cover(const char *path) {
    static const char *empty;
    struct stat found;
    if (stat(path, &found) < 0)
        return;
    if (!S_ISDIR(found.st_mode)) {
        TRY(mount("/dev/null", path, NULL, MS_BIND, NULL));
    } else if (empty) {
        TRY(mount(empty, path, NULL, MS_BIND, NULL));
    } else {
        TRY(mount("tmpfs", path, "tmpfs", INERT | MS_RDONLY, "size=0,nr_inodes=1,mode=755"));
        empty = path;
    }
}

static void read_only(const char *path) {
    if (access(path, F_OK) < 0)
        return;
    TRY(mount(path, path, NULL, MS_BIND | MS_REC, NULL));
    TRY(mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | INERT, NULL));
}

static void make_root(void) {
    static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const hidden[] = {
        "/proc/acpi",        "/proc/asound",      "/proc/interrupts", "/proc/kcore",
        "/proc/keys",        "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
        "/proc/timer_list",  "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"};
    static const char *const fixed[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                                        "/proc/sysrq-trigger"};

    TRY(sethostname("floor", 5));
    TRY(mount("floor", "/mnt", "tmpfs", MS_NODEV, "size=4294967296,mode=755"));
    TRY(mkdir("/mnt/root", 0755));
    TRY(mkdir("/mnt/upper", 0755));
    TRY(mkdir("/mnt/work", 0700));
    TRY(mkdir("/mnt/upper/etc", 0755));
    make_file("/mnt/upper/etc/hostname", "floor\n");
    make_file("/mnt/upper/etc/hosts", "127.0.0.1\tlocalhost floor\n::1\tlocalhost\n");
    make_file("/mnt/upper/etc/resolv.conf", "");
    static char options[4096];
    const char *lower = rootfs;
    if (!strchr(rootfs, ':')) {
        TRY(chdir(rootfs));
        lower = ".";
    }
    int length = snprintf(options, sizeof options,
                          "lowerdir=%s,upperdir=/mnt/upper,workdir=/mnt/work,userxattr", lower);
    if (length >= (int)sizeof options) {
        dprintf(2, "floor.c: the names of the layers do not fit into a page\n");
        _exit(99);
    }
    TRY(mount("floor", "/mnt/root", "overlay", MS_NODEV, options));

    TRY(mount("proc", "/mnt/root/proc", "proc", INERT, NULL));
    write_text("/mnt/root/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    TRY(mount("sysfs", "/mnt/root/sys", "sysfs", INERT | MS_RDONLY, NULL));
    TRY(mkdir("/mnt/dev", 0755));
    TRY(mount("/mnt/dev", "/mnt/root/dev", NULL, MS_BIND, NULL));
    TRY(mount(NULL, "/mnt/root/dev", NULL, MS_REMOUNT | MS_BIND | INERT, NULL));
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        device(devices[i]);
    TRY(symlink("/proc/self/fd", "/mnt/root/dev/fd"));
    TRY(symlink("/proc/self/fd/0", "/mnt/root/dev/stdin"));
    TRY(symlink("/proc/self/fd/1", "/mnt/root/dev/stdout"));
    TRY(symlink("/proc/self/fd/2", "/mnt/root/dev/stderr"));
    TRY(symlink("pts/ptmx", "/mnt/root/dev/ptmx"));
    TRY(mkdir("/mnt/root/dev/pts", 0755));
    TRY(mkdir("/mnt/root/dev/shm", 0755));
    TRY(mkdir("/mnt/root/dev/mqueue", 0755));
    TRY(mount("devpts", "/mnt/root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=620"));
    TRY(mount("shm", "/mnt/root/dev/shm", "tmpfs", INERT, "size=67108864,mode=1777"));
    TRY(mount("mqueue", "/mnt/root/dev/mqueue", "mqueue", INERT, NULL));

    TRY(chdir("/mnt/root"));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
    TRY(chdir("/"));
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        cover(hidden[i]);
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        read_only(fixed[i]);
}

/* Holds no capabilities but these. */
static void hold_only(uint64_t kept) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {.effective = (uint32_t)kept, .permitted = (uint32_t)kept},
        {.effective = (uint32_t)(kept >> 32), .permitted = (uint32_t)(kept >> 32)}};
    TRY(syscall(SYS_capset, &header, data));
}

/* In a child that shares its parent's memory until it executes. */
static void become_program(const char *path) {
    /* What container engines leave to a container's root. */
    const uint64_t kept = 0xa80425fbULL;
    char *const argv[] = {(char *)path, NULL}, *const env[] = {NULL};
    struct sock_fprog program = {.len = FILTER_LENGTH, .filter = filter};
    sigset_t none;

    TRY(setsid());
    TRY(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC));
    for (int bit = 0; bit < 64; bit++)
        if (!(kept >> bit & 1) && prctl(PR_CAPBSET_DROP, bit, 0, 0, 0) < 0)
            break;
    TRY(setresgid(0, 0, 0));
    TRY(setresuid(0, 0, 0));
    umask(022);
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    hold_only(kept);
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    TRY(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    TRY(execve(argv[0], argv, env));
}

/* What a sandbox is made for. */
enum kind { TO_ITS_END, AHEAD, TO_STAY };

/* The launcher's end of the socket on which a sandbox says how far it is, and is told to go on. */
struct sandbox {
    pid_t pid;
    int post;
};

/* A network namespace that was made before, or -1. */
static int network = -1;

static void make_network(void) {
    int pair[2];
    char byte = 0, path[64];
    TRY(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    struct clone_args arguments = {.flags = CLONE_NEWNET, .exit_signal = SIGCHLD};
    pid_t pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    TRY(pid);
    if (pid == 0)
        /* Until the namespace is held by a descriptor. */
        _exit(read(pair[1], &byte, 1) == 1 ? 0 : 99);
    snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
    network = open(path, O_RDONLY | O_CLOEXEC);
    TRY(network);
    TRY(write(pair[0], &byte, 1));
    TRY(waitpid(pid, NULL, 0));
    close(pair[0]);
    close(pair[1]);
}

static int run_init(enum kind kind, int post) {
    int status = 0;
    char byte = 0;
    if (network >= 0)
        TRY(setns(network, CLONE_NEWNET));
    loopback_up();
    make_root();
    if (kind == AHEAD) {
        TRY(write(post, &byte, 1));
        TRY(read(post, &byte, 1));
    }
    pid_t pid = vfork();
    TRY(pid);
    if (pid == 0)
        become_program(kind == TO_STAY ? "/bin/pause" : "/bin/true");
    hold_only(1 << CAP_KILL);
    /* The parent of a vfork goes on once its child has executed. */
    if (kind == TO_STAY)
        TRY(write(post, &byte, 1));
    TRY(waitpid(pid, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

static struct sandbox start(enum kind kind) {
    struct clone_args arguments = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP |
                 (network < 0 ? CLONE_NEWNET : 0),
        .exit_signal = SIGCHLD,
    };
    int pair[2] = {-1, -1};
    char byte;
    if (kind != TO_ITS_END)
        TRY(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    pid_t pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    TRY(pid);
    if (pid == 0)
        _exit(run_init(kind, pair[1]));
    if (network >= 0)
        close(network);
    network = -1;
    if (kind != TO_ITS_END) {
        close(pair[1]);
        if (read(pair[0], &byte, 1) != 1) {
            dprintf(2, "floor.c: a sandbox ended before it was ready\n");
            _exit(99);
        }
    }
    return (struct sandbox){.pid = pid, .post = pair[0]};
}

static void await(pid_t pid) {
    int status = 0;
    TRY(waitpid(pid, &status, 0));
    if (status != 0) {
        dprintf(2, "floor.c: the sandbox ended with status %#x\n", status);
        _exit(99);
    }
}

static void launch(void) { await(start(TO_ITS_END).pid); }

/* Does what `letter` asks for. */
static void act(char letter) {
    static struct sandbox ahead;
    switch (letter) {
    case 'x':
        launch();
        return;
    case 'p':
        ahead = start(AHEAD);
        return;
    case 'g':
        TRY(write(ahead.post, "", 1));
        await(ahead.pid);
        close(ahead.post);
        return;
    case 'n':
        make_network();
        return;
    case 's':
        close(start(TO_STAY).post);
        return;
    default:
        dprintf(2, "floor.c: no such letter: %c\n", letter);
        _exit(2);
    }
}

/* `count` sandboxes, by two processes. */
static void launch_many(long count) {
    pid_t other = fork();
    TRY(other);
    for (long left = other == 0 ? count / 2 : count - count / 2; left > 0; left--)
        launch();
    if (other == 0)
        _exit(0);
    await(other);
}

static void settle(void) {
    char map[64];
    snprintf(map, sizeof map, "0 %u 1", geteuid());
    char groups[64];
    snprintf(groups, sizeof groups, "0 %u 1", getegid());
    TRY(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID));
    write_text("/proc/self/setgroups", "deny");
    write_text("/proc/self/uid_map", map);
    write_text("/proc/self/gid_map", groups);
    TRY(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
}

int main(int argc, char **argv) {
    long count = argc != 3 ? 0 : strcmp(argv[2], "once") == 0 ? 1 : atol(argv[2]);
    if (argc != 2 && count < 1) {
        dprintf(2, "usage: floor ROOTFS [once | COUNT]\n");
        return 2;
    }
    rootfs = argv[1];
    build_filter();
    settle();
    /* Process 1 of the new pid namespace launches; this one waits for it. */
    pid_t first = fork();
    TRY(first);
    if (first > 0) {
        int status = 0;
        TRY(waitpid(first, &status, 0));
        return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
    }
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    /* So that an init finds its own processes where it looks for them. */
    TRY(mount("proc", "/proc", "proc", INERT, NULL));
    if (count == 1) {
        launch();
        return 0;
    }
    if (count > 1) {
        launch_many(count);
        return 0;
    }
    char letter;
    while (read(0, &letter, 1) == 1) {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        act(letter);
        clock_gettime(CLOCK_MONOTONIC, &after);
        dprintf(1, "%lld\n",
                (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec);
    }
    return 0;
}
