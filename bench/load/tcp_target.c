/* The target of TCP load: for every so many bytes it gets, it gives so many back.
 *
 * --port N   --request N   --response N   --close 1: end the connection after one answer
 */
#include "common.h"

struct session {
    int descriptor;
    int64_t got, owed;
    bool last; /* what is owed is the end */
};

static int64_t request, response;
static bool closes;
static char block[BLOCK], scrap[BLOCK];

static void end(struct session *session)
{
    close(session->descriptor);
    free(session);
}

static bool pay(struct session *session)
{
    while (session->owed > 0) {
        ssize_t amount = send(session->descriptor, block, session->owed < BLOCK ? session->owed : BLOCK, 0);
        if (amount < 0)
            return errno == EAGAIN;
        session->owed -= amount;
    }
    return !session->last;
}

static bool take(struct session *session)
{
    for (;;) {
        ssize_t amount = recv(session->descriptor, scrap, sizeof scrap * 8, MSG_TRUNC);
        if (amount < 0)
            return errno == EAGAIN;
        if (amount == 0)
            return false;
        session->got += amount;
        for (; session->got >= request; session->got -= request) {
            session->owed += response;
            session->last = closes;
        }
        /* The answer comes before more is read, or a stream of requests would never get one. */
        if (!pay(session))
            return false;
    }
}

int main(int count, char **words)
{
    struct epoll_event events[EVENTS];
    struct sockaddr_in address = loopback(option(count, words, "--port", 0));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    prepare_process();
    request = option(count, words, "--request", 64);
    response = option(count, words, "--response", 64);
    closes = option(count, words, "--close", 0);
    memset(block, 'y', sizeof block);
    set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die_errno("listen");
    watch(epoll, listener, EPOLLIN, NULL);
    say("ready");

    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct session *session = events[i].data.ptr;
            if (!session) {
                int descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (descriptor < 0)
                    continue;
                set_option(descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
                session = allocate(1, sizeof *session);
                session->descriptor = descriptor;
                watch(epoll, descriptor, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, session);
                continue;
            }
            if (!pay(session) || !take(session))
                end(session);
        }
    }
}
