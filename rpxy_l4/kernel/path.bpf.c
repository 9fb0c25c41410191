// SPDX-License-Identifier: MIT
//
// The kernel path: at tc ingress, packets of flows that user space has decided are rewritten and sent on their way.
// Whatever is unusual about a datagram is left to the sockets below, which serve the same flow. TCP connections have none.
//
// User space makes the maps and fills them; the structures stand once more in layout.py, and a test compares the two.

#include "icmp.bpf.h"
#include "tcp.bpf.h"
#include "udp.bpf.h"

static __always_inline int handle(struct __sk_buff *skb, __u32 network)
{
    struct packet packet = {};

    // A VLAN's packets come once more, from its own interface.
    if (skb->pkt_type != PACKET_HOST || skb->vlan_present || read_network(skb, network, &packet))
        return LEAVE;
    if (packet.key.protocol == IPPROTO_UDP)
        return handle_udp(skb, network, &packet);
    if (packet.key.protocol == IPPROTO_TCP)
        return handle_tcp(skb, network, &packet);
    if (packet.key.family == 4 && packet.key.protocol == IPPROTO_ICMP)
        return read_icmp(skb, &packet);
    if (packet.key.family == 6 && packet.key.protocol == IPPROTO_ICMPV6)
        return read_icmpv6(skb, &packet);
    return LEAVE;
}

SEC("tc")
int ethernet(struct __sk_buff *skb)
{
    return handle(skb, ETH_HLEN);
}

// Of interfaces whose packets begin with the network header, such as those of tunnels.
SEC("tc")
int plain(struct __sk_buff *skb)
{
    return handle(skb, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
