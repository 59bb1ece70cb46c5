# Generated from the agent's OpenAPI document: do not edit. (go generate ./internal/pyclient)
# SPDX-License-Identifier: Apache-2.0
"""Client of the local API of the Pavise agent. It needs Python 3.8 or newer, and nothing else.

    import pavise

    agent = pavise.Client()
    print(agent.status()["generation"])
    agent.apply_policies(open("nginx.yaml").read(), file="nginx.yaml", confirm_within="60s")
    agent.confirm()
    for event in agent.events(follow=True, where='action == "deny"'):
        print(event["process"]["exe"]["path"], event["file"]["path"])

What the agent refuses is an APIError. An agent that does not answer is an OSError. A Client may be used by several threads. There may be
more in an answer than its type says: an agent that is newer than this file.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import time
import urllib.parse
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, TypedDict, Union

SOCKET = "/run/pavise/pavise.sock"



class _Act(TypedDict):
    count: int
    event: Event  # an example: the first
    first: str
    last: str


class Act(_Act, total=False):
    """An Act is one thing that one program did to one object, however often."""

    by: str  # By names the policy and the rule that flag the act, empty for none: it is not learned.
    start: bool  # Start says that it was done within 10 s of its process's start.


class Addr(TypedDict):
    pass


class By(TypedDict, total=False):
    """By is who asked for a revision. A local caller is known to the kernel; the agent itself has no UID."""

    command: str  # the caller's own name for itself: it proves nothing
    pid: int
    uid: int


class _Change(TypedDict):
    activated_ns: int  # nanoseconds
    compiled_ns: int  # nanoseconds
    generation: int  # 0 for a dry run
    policies: List[PolicyStatus]
    staged_ns: int  # nanoseconds
    total_ns: int  # nanoseconds


class Change(_Change, total=False):
    """Change is the answer to PUT and DELETE."""

    confirm_by: str  # else it is taken back
    dry_run: bool
    revision: int  # in force; 0 without a state directory


class Confirmed(TypedDict):
    """Confirmed is the answer to POST /v1/confirm."""

    revision: int  # that stays


class _Container(TypedDict):
    id: str


class Container(_Container, total=False):
    """Container is the container a process runs in. ID and Runtime are from its cgroup: of the innermost container. The others are what the runtime of the outermost one says of that, empty where it says nothing: a container made inside of another is not believed about itself."""

    image: str
    labels: Dict[str, str]
    name: str
    runtime: str


class _ContainerCount(TypedDict):
    failed: int  # given up: the runtime's files say nothing, or cannot be read
    known: int
    refused: int  # too many at once
    unknown: int
    untrusted: int  # others than root may have made their cgroups


class ContainerCount(_ContainerCount, total=False):
    """ContainerCount says of how many running containers the names are known, and of how many nothing but the id is."""

    behind: str  # why the rules do not know of all that are known


class _CutOff(TypedDict):
    closed: int
    kept: int  # they are excepted


class CutOff(_CutOff, total=False):
    """CutOff says what became of the connections of a subject that were there."""

    failed: List[str]  # could not be closed, or not be looked for, and why


class _DNS(TypedDict):
    client: FlowSide
    code: str  # "NOERROR", "NXDOMAIN", or "RCODE12"
    id: int
    query: str  # Query is as it was asked for, without the last dot, upper and lower case as they are; bytes that are no text, and dots in a label, as \DDD.
    server: FlowSide
    type: str  # "A", "AAAA", "HTTPS", or "TYPE123"


class DNS(_DNS, total=False):
    """DNS is one answer to a question for a name. One of mDNS has no question: Query and Type are those of the first record."""

    answers: List[DNSRecord]
    flow: str  # Flow.ID of what it came in, where that is known
    net_ns: int
    outgoing: bool  # Outgoing tells that the server is this host's: Server is the local side.
    protocol: str  # UDP or TCP
    time: str  # nanoseconds since the Unix epoch; "time" in JSON
    truncated: bool  # Cut tells that answers are missing: the server says so, or not all was copied or read.


class _DNSRecord(TypedDict):
    name: str
    ttl: int  # seconds
    type: str


class DNSRecord(_DNSRecord, total=False):
    """DNSRecord is one record of an answer."""

    address: Addr  # Address is of A and AAAA, and Target of CNAME, and of HTTPS where it names another. An HTTPS record's address hints are in Hints.
    alpn: List[str]
    encrypted: bool
    hints: List[Addr]
    priority: int  # Priority is of HTTPS and SVCB: 0 makes the record an alias for Target. ALPN are the protocols that it offers, and Encrypted tells that it has the key for an encrypted ClientHello.
    target: str


class _Detail(TypedDict):
    msg: str


class Detail(_Detail, total=False):
    """Detail is one fault of a policy, where it stands and what to write instead."""

    column: int
    field: str
    file: str
    hint: str
    line: int


class _Doctor(TypedDict):
    agent: bool  # an agent runs and gave this answer
    host: Host
    operations: List[OpDoctor]


class Doctor(_Doctor, total=False):
    """Doctor is GET /v1/doctor: what this machine can do, and why not more."""

    error: str  # why the operations could not be probed
    keep: KeepInfo


class _Document(TypedDict):
    name: str
    yaml: str


class Document(_Document, total=False):
    """Document is one policy of a revision, as it was written."""

    file: str
    sets: Dict[str, str]  # the files that it names


class Endpoint(TypedDict, total=False):
    address: str
    name: str
    path: str
    port: int
    process: peerJSON


class ErrorBody(TypedDict):
    """ErrorBody is every answer that is not a success."""

    error: ErrorBodyError


class _ErrorBodyError(TypedDict):
    message: str


class ErrorBodyError(_ErrorBodyError, total=False):
    details: List[Detail]


class _Event(TypedDict):
    id: int
    op: str  # none, process.exec, file.open, net.connect, net.bind, net.listen, net.accept, net.send, net.socket, process.signal, process.ptrace, process.setid, process.capset, memory.exec, file.create, file.delete, file.rename, file.link, file.symlink, file.truncate, file.chmod, file.chown, file.setxattr, fs.mount, fs.umount, fs.chroot, fs.pivot_root, kernel.module, kernel.bpf, kernel.perf, kernel.keyring, kernel.userns, kernel.io_uring, kernel.kexec, kernel.sysctl, device.open, process.fork, process.exit, agent.lost, net.flow, net.dns
    time: str  # nanoseconds since the Unix epoch; "time" in JSON, RFC 3339 with nanoseconds


class Event(_Event, total=False):
    """Event is one thing that happened, as every room of Pavise and every reader of its API sees it. Decoders reuse one Event: its strings may point into the record they were decoded from and are valid only until the next decode. Clone keeps one."""

    action: str  # Verdict. Action is what was (Monitor false) or would have been (Monitor true) done. ActionNone marks a lifecycle fact that no rule asked for.: none, allow, audit, deny, kill
    active: str  # none, allow, would-deny, would-kill, deny, kill
    bpf: EventBPF
    capset: EventCapset
    count: int  # repeats folded into this event, itself included
    device: EventDevice
    dns: DNS  # net.dns: Process is who asked, and Net are the two ends
    exec: EventExec  # lifecycle process.exec and process.fork: merged into Process by proc
    exit: ExitInfo  # process.exit
    file: EventFile  # process.exec (the new executable), file.*, fs.*, and others whose object is a file
    flow: Flow  # net.flow: Process is who acts at its local side, and Net are its two ends
    io_uring: EventIOUring
    kexec: Source
    key: EventKey
    lost: EventLost  # agent.lost
    matched: int  # how many rules matched, 255 at most
    memory: Dict[str, bool]
    message: str
    module: Source
    monitor: bool
    mount: EventMount
    net: NetInfo  # net.*
    perf: EventPerf
    policy: str
    process: Process
    ptrace: EventPtrace
    rule: str
    rung: str  # none, lsm, fmod_ret, cgroup, kill-on-return
    setid: EventSetid
    severity: str
    shadow: str  # Shadow and Active are of an event about a candidate (pavise shadow) alone: what the candidate would do, and what the active policies did instead. Action is the candidate's then, and Monitor is true.: none, allow, would-deny, would-kill, deny, kill
    signal: str
    sysctl: EventSysctl
    target: Target


class EventBPF(TypedDict, total=False):
    command: str


class EventCapset(TypedDict, total=False):
    effective: List[str]
    permitted: List[str]


class EventDevice(TypedDict, total=False):
    major: int
    minor: int


class EventExec(TypedDict, total=False):
    args: List[str]
    args_truncated: bool


class EventFile(TypedDict, total=False):
    access: List[str]
    alias: str  # the other name by which a rule matched: a hard link's or a bind mount's source
    deleted: bool
    dev: int  # as the kernel's dev_t: major<<20 | minor
    fs: str  # file system type: ext4, overlay, tmpfs
    inode: str
    links: int
    memfd: bool
    mode: int  # permission bits and type, as in stat(2)
    new_group: int
    new_mode: int
    new_owner: int
    new_path: str
    owner: int
    path: str
    target: str
    truncated: bool
    xattr: str


class EventIOUring(TypedDict, total=False):
    request: str


class EventKey(TypedDict, total=False):
    description: str
    type: str


class EventLost(TypedDict, total=False):
    count: int
    op: str  # none, process.exec, file.open, net.connect, net.bind, net.listen, net.accept, net.send, net.socket, process.signal, process.ptrace, process.setid, process.capset, memory.exec, file.create, file.delete, file.rename, file.link, file.symlink, file.truncate, file.chmod, file.chown, file.setxattr, fs.mount, fs.umount, fs.chroot, fs.pivot_root, kernel.module, kernel.bpf, kernel.perf, kernel.keyring, kernel.userns, kernel.io_uring, kernel.kexec, kernel.sysctl, device.open, process.fork, process.exit, agent.lost, net.flow, net.dns
    policy: str
    where: str


class EventMount(TypedDict, total=False):
    flags: List[str]
    source: str
    type: str


class EventPerf(TypedDict, total=False):
    type: str


class EventPtrace(TypedDict, total=False):
    mode: str


class EventSetid(TypedDict, total=False):
    group: NumericID
    user: NumericID


class EventSysctl(TypedDict, total=False):
    name: str


class _ExitInfo(TypedDict):
    code: int


class ExitInfo(_ExitInfo, total=False):
    """ExitInfo is how a process ended."""

    signal: int


class _ExportStatus(TypedDict):
    form: str
    lost: int  # that could not be written, or came too fast
    no_place: int  # that the form has no place for
    to: str
    written: int  # records that were given on


class ExportStatus(_ExportStatus, total=False):
    """ExportStatus is what became of an export."""

    error: str  # why it does not work now


class Fact(TypedDict):
    """Fact is a field and its value in an event: a string, a number, a boolean, or a list or map of strings."""

    field: str
    value: Any


class FileInfo(TypedDict, total=False):
    """FileInfo is the file an operation acts on."""

    access: List[str]
    alias: str  # the other name by which a rule matched: a hard link's or a bind mount's source
    deleted: bool
    dev: int  # as the kernel's dev_t: major<<20 | minor
    fs: str  # file system type: ext4, overlay, tmpfs
    inode: str
    links: int
    memfd: bool
    mode: int  # permission bits and type, as in stat(2)
    owner: int
    path: str
    truncated: bool


class _Flow(TypedDict):
    id: str  # the same in all reports of a flow; unique until the machine boots
    local: FlowSide
    received: Traffic
    received_new: Traffic
    remote: FlowSide
    report: int  # the number of this report, from 0
    sent: Traffic  # Sent and Received count from the local side. Bytes are those of the payload of TCP and UDP, of the whole message of ICMP and raw sockets.
    sent_new: Traffic  # SentNew and ReceivedNew are what was added since the report before.
    state: str


class Flow(_Flow, total=False):
    """Flow is one connection, or one exchange of datagrams between two ends, as this host saw it, with the process that owns this end. A flow is reported when it has ended, and every ten seconds while it goes on: each report has all counters since Start, and what was added since the report before. A published Flow is never written again."""

    community_id: str
    connect_latency_ns: int  # from the first SYN to the connection
    direction: str  # who began
    end: str  # how it ended
    family: str  # AF_*; names in JSON, as in NetInfo
    found: bool  # it was there before the agent was
    icmp: ICMP
    net_ns: int  # NetNS is the inode number of the network namespace.
    others: bool  # Others tells that Remote is none in particular: the table of peers was full, and this is what went between the socket and all that are not in it.
    policy: str  # Policy and Rule are those that denied it.
    protocol: str  # IPPROTO_*; 0 for Unix sockets
    reset_by: str  # of FlowReset, where it is known
    retransmits: int
    rtt_ns: int  # smoothed, of TCP
    rule: str
    start: str  # of the flow: when it was asked for, or found
    time: str  # of this report: nanoseconds since the Unix epoch; "time" in JSON, RFC 3339, as Start
    tls: TLS
    type: str  # SOCK_*


class FlowSide(TypedDict, total=False):
    """FlowSide is one end of a flow."""

    address: str  # never an IPv4-mapped IPv6 address
    asked_by: str
    name: str  # Name is the domain name that the owner's namespace knows the address by, and AskedBy the executable that asked for it.
    path: str  # of a Unix socket; an abstract name begins with '@'
    port: int  # of ICMP the identifier of an echo, or the type
    process: Process  # Process is who acts at this end, when that is on this host.


class _FlowStatus(TypedDict):
    data_lost: int  # copies of DNS answers and of ClientHellos
    late: int  # packets of datagram sockets that nobody has any more, or whose headers make no sense: told nowhere
    lost: int
    lost_bytes: int
    made: int  # Of the kernel: records that were made, and those of them that found no place in the ring, with the bytes that these would have told.
    maps_bytes: int
    no_peer: int  # packets whose peer found no room: they are told in a flow of others, with their socket
    no_storage: int  # sockets for which the kernel had no memory
    no_unix: int  # acts on Unix sockets that found no room: they are told in one flow of others
    on: bool
    table: Stats
    undecoded: int
    unowned: int  # flows that ended and whose process is not known


class FlowStatus(_FlowStatus, total=False):
    """FlowStatus is what the status says of flows."""

    error: str  # why not, or what is wrong
    exports: List[ExportStatus]
    lacking: List[str]  # what this kernel does not let be told
    sums: List[Sum]  # what all flows carried, by protocol


class Health(TypedDict):
    """Health is GET /healthz."""

    status: str  # ok


class HistoryGroup(TypedDict):
    """HistoryGroup is how many events have the same values of the fields that were asked for."""

    count: int  # with the repeats that were folded into them
    events: int
    first: str
    last: str
    values: List[str]


class HistoryLine(TypedDict, total=False):
    """HistoryLine is one line of the answer to GET /v1/history: an event, a group, how far the scan is, or, at the end, what it was."""

    end: ScanEnd
    event: Event
    group: HistoryGroup
    progress: ScanProgress


class _HistoryRecovery(TypedDict):
    events: int  # in logs that were no segment yet
    lost_bytes: int  # that are no whole record: cut off or damaged
    until: str  # the time of the last of them


class HistoryRecovery(_HistoryRecovery, total=False):
    """HistoryRecovery says what the start found of the last agent's log: what is there, and what is lost when that agent, or the machine, was killed."""

    damaged: List[str]  # logs of which nothing can be read


class _HistoryStatus(TypedDict):
    bytes: int
    dropped: int  # that could not be written, or came too fast
    lost_bytes: int  # of logs, that were found to be no records
    max_bytes: int
    on: bool
    removed: int  # files that went for the limits, or for room
    segments: int
    written: int  # events since the start


class HistoryStatus(_HistoryStatus, total=False):
    """HistoryStatus is the history in the status."""

    error: str  # why not, or what is wrong with it
    recovered: HistoryRecovery  # what the start found of a history that was not made into segments


class _Host(TypedDict):
    arch: str
    btf: bool
    capabilities: List[str]  # effective, of those that the agent needs
    kernel: str
    lsm: List[str]  # active security modules, in order


class Host(_Host, total=False):
    """Host is what matters of a host's kernel and settings."""

    cgroup1: List[str]  # mount points of version 1
    cgroup2: str
    lockdown: str
    missing_capabilities: List[str]


class ICMP(TypedDict):
    """ICMP is the first message of a flow of ICMP or ICMPv6, where it is known."""

    code: int
    type: int


class Isolated(TypedDict):
    """Isolated is the answer to POST /v1/isolations."""

    change: Change
    cut: CutOff  # of the connections that were there
    isolation: Isolation


class _Isolation(TypedDict):
    name: str  # of its policy
    processes: int  # of the subject, that run
    subject: str
    what: str  # who is isolated, in words


class Isolation(_Isolation, total=False):
    """Isolation is one subject that is cut off."""

    exceptions: List[str]
    open: List[str]  # what this machine cannot cut off, and why
    since: str


class IsolationList(TypedDict):
    """IsolationList is GET /v1/isolations."""

    isolations: List[Isolation]


class _IsolationRequest(TypedDict):
    subject: IsolationSubject


class IsolationRequest(_IsolationRequest, total=False):
    """IsolationRequest is the body of POST /v1/isolations."""

    exceptions: List[str]  # what stays reachable: an address, a prefix, a name, each with a port or without, or a CEL condition on net.*
    kill: bool  # where the kernel cannot deny an operation, the process that does it is killed
    unix: bool  # Unix sockets are cut off too
    widen: bool  # of a process that cannot be isolated alone, isolate those too that look like it


class IsolationSubject(TypedDict, total=False):
    """IsolationSubject is who is to be isolated: one of them."""

    container: str  # its id, the beginning of it, or its name
    pid: int
    unit: str  # of systemd, as "nginx.service"


class KeepInfo(TypedDict, total=False):
    """KeepInfo says what becomes of enforcement when the agent ends."""

    adopted: bool  # what an agent before this one had left went on with this one
    keep: str  # no, forever, or for how long it goes on
    left: bool  # no agent runs, and one before has left its policies in force
    pins: str  # the directory in which it is pinned
    replaced: str  # or why not: it went on until the policies of this one judged


class _LearnRequest(TypedDict):
    for_ns: int  # nanoseconds
    subject: str  # CEL, as a policy's subject


class LearnRequest(_LearnRequest, total=False):
    """LearnRequest is the body of PUT /v1/learning."""

    operations: List[str]  # none: all that can be seen on this machine


class _Learning(TypedDict):
    acts: int  # that differ
    lost: int  # of these operations, by any process
    on: bool
    operations: List[str]
    running: int  # processes of the subject that ran already when it began: how they started was not seen
    seen: int  # with repeats
    since: str
    subject: str
    until: str


class Learning(_Learning, total=False):
    """Learning is GET /v1/learning: what is being learned, or was last. GET /v1/learning/acts has what was seen."""

    unseen: List[str]  # operations that this machine cannot see
    why: str  # it ended, when nobody ended it


class LogLevel(TypedDict):
    """LogLevel is the body and the answer of PUT /v1/log."""

    level: str  # debug, info, warn or error


class ModeRequest(TypedDict):
    """ModeRequest is the body of PUT /v1/policies/NAME/mode."""

    mode: str  # monitor, enforce


class _Namespaces(TypedDict):
    cgroup: int
    ipc: int
    mnt: int
    net: int
    pid: int
    user: int
    uts: int


class Namespaces(_Namespaces, total=False):
    """Namespaces are inode numbers of a process's namespaces, as in /proc/PID/ns."""

    host: List[str]  # Host are those that are the machine's own, the ones that were there at boot. In JSON it is a list of names.


class _NetInfo(TypedDict):
    family: str  # AF_UNIX 1, AF_INET 2, AF_INET6 10; names in JSON


class NetInfo(_NetInfo, total=False):
    """NetInfo is the socket an operation acts on."""

    established: bool  # Established marks a connection that was there when the policies changed, and was judged again (established: recheck).
    interface: str  # where a rule asked for it
    local: Endpoint
    protocol: str
    remote: Endpoint  # IPv6, or IPv4 as ::ffff:a.b.c.d; "remote": {"address","port","path"} in JSON
    type: str  # SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_RAW 3, SOCK_SEQPACKET 5; names in JSON


class _Node(TypedDict):
    kind: str  # test, all, any, not, if
    result: str  # true, false, or error
    text: str  # as written, cut when long


class Node(_Node, total=False):
    """Node is a sub-expression of a condition, and what it is on an event's values."""

    column: int
    error: str
    facts: List[Fact]  # the fields that a test is about
    line: int
    of: List[Node]  # the parts of what is no test


class NumericID(TypedDict):
    id: int


class OpCount(TypedDict):
    """OpCount are an operation's counters: the kernel's, and how many records of it the agent has received."""

    delivered: int
    folded: int
    lost: int
    op: str
    received: int
    rung: str
    seen: int


class _OpDoctor(TypedDict):
    deny: bool
    kill: bool
    op: str
    rung: str


class OpDoctor(_OpDoctor, total=False):
    """OpDoctor is one operation's rung, and why it is not a higher one."""

    before: List[str]  # of missing, what it has before the act, to rules that ask nothing of the process
    kill_only: List[str]
    missing: List[str]  # Facts that the rung does not have, and facts that it has only after the act, where it can still kill.
    missing_why: Dict[str, str]  # of those that no rung of the machine has
    notes: List[str]
    tried: List[RungTry]
    why: str


class _Peer(TypedDict):
    role: str  # read, write or admin
    uid: int


class Peer(_Peer, total=False):
    """Peer is who asks, as the kernel says."""

    pid: int  # 0 when it is in another PID namespace


class _Pod(TypedDict):
    namespace: str


class Pod(_Pod, total=False):
    """Pod is the Kubernetes pod of a process's container, as the container's runtime says."""

    labels: Dict[str, str]
    name: str


class PolicyList(TypedDict):
    """PolicyList is GET /v1/policies."""

    generation: int
    policies: List[PolicyStatus]
    shadow: List[str]  # the names of the candidate's policies, while one is on


class PolicyMode(TypedDict):
    """PolicyMode is a policy's name and mode."""

    mode: str
    name: str


class _PolicyStatus(TypedDict):
    mode: str
    name: str
    rules: List[RuleStatus]


class PolicyStatus(_PolicyStatus, total=False):
    """PolicyStatus is a policy in GET /v1/policies."""

    change: str  # of a candidate's policy: added, replaced or unchanged
    file: str  # as it was named when it was loaded or applied
    labels: Dict[str, str]
    source: str  # canonical YAML; GET of one policy only
    warnings: List[str]


class _Process(TypedDict):
    exec_id: str
    pid: int


class Process(_Process, total=False):
    """Process is one executable image of one process: (boot, pid, start time) and a new exec generation at each exec. It is immutable once published, except through proc."""

    args: List[str]
    args_truncated: bool
    caps: List[str]  # effective capabilities, bit n is capability n; in JSON a list of names
    cgroup: str
    cgroup_id: str
    container: Container
    cwd: str
    exe: FileInfo
    exe_digest: str  # of its content, "sha256:..."; empty when no rule asked for it
    exe_verity: str  # of fs-verity, likewise
    exit_time: str  # nanoseconds since the Unix epoch, 0 while it runs
    found: bool
    group_id: int
    login_id: int  # absent when not set
    namespaces: Namespaces
    on_root: bool  # Exe is on the machine's root file system
    parent: Process  # Parent is one level only and its own Parent is nil, so that a long-lived process does not keep every ancestor in memory; proc.Table.Ancestors walks further. In JSON: exec_id, pid, exe.path.
    parent_exec_id: str
    pod: Pod
    real_gid: int
    real_uid: int
    script: str
    secure_exec: bool
    start_time: str  # of the process, not of this image: nanoseconds since the Unix epoch; RFC 3339 in JSON
    tty: bool
    unit: str
    unknown: bool  # nothing but ExecID and PID is known: its record was lost or is not here yet
    user: User


class ProcessList(TypedDict):
    """ProcessList is GET /v1/processes."""

    processes: List[Process]


class Readiness(TypedDict):
    """Readiness is GET /readyz."""

    generation: int  # of the policies that judge
    ready: bool
    reasons: List[str]  # why it is not ready


class _Reason(TypedDict):
    action: str  # as the rule asks
    holds: bool  # the subject and the condition, on the values that the event has
    mode: str  # monitor, enforce
    policy: str
    rule: str


class Reason(_Reason, total=False):
    """Reason is one rule by which an event was judged, and how its conditions are on the event's values."""

    alias: str  # Alias is the other name of the file under which the condition holds, when it does not hold under the first.
    allows: List[Refusal]  # Allows are, of a default, the policy's allow rules for the operation, of which none held.
    degraded: str  # why it is not done as asked
    effective: str  # what is done instead
    file: str
    line: int
    note: str
    state: str  # enforced, monitored, audit, degraded, not observed, no effect
    subject: Node  # nil: every process
    when: Node  # nil: always


class _RecheckStatus(TypedDict):
    cause: str  # policies, start, containers or names: what had changed: policies, start, containers, names
    checked: int  # the sum of those that follow, and of those that were not ended though denied
    ended: int
    generation: int  # whose policies judged
    kept: int
    time: str  # when it was done
    took_ns: int  # nanoseconds
    unknown: int  # left alone, as something is missing to judge them
    would_end: int  # by policies in monitor mode, and by rules that this machine cannot carry out


class RecheckStatus(_RecheckStatus, total=False):
    """RecheckStatus is what came of the last time that the connections which were there were judged anew: TCP, and UDP sockets that are connected."""

    failed: List[str]  # could not be ended, or not be looked for, and why
    missing: Dict[str, int]  # Missing says what, and of how many connections.


class _Refusal(TypedDict):
    rule: str


class Refusal(_Refusal, total=False):
    """Refusal is an allow rule that did not hold."""

    failed: Node  # the first of its conditions that did not hold
    file: str
    line: int
    note: str


class RevisionList(TypedDict):
    """RevisionList is GET /v1/revisions."""

    damaged: List[str]  # files that are not what was written
    revisions: List[RevisionStatus]


_RevisionStatus = TypedDict(
    "_RevisionStatus",
    {
        "by": "By",
        "documents": "List[Document]",
        "files": "List[Document]",  # the files that the agent was started with then
        "from": "str",  # what made it: apply, delete, mode, rollback, start
        "id": "str",  # "sha256:..." of the documents: the same set has the same one
        "number": "int",  # from 1
        "policies": "List[str]",  # their names; documents are given of one revision only
        "time": "str",
    },
)


class RevisionStatus(_RevisionStatus, total=False):
    """RevisionStatus is one revision in GET /v1/revisions."""

    confirm_by: str  # else it is taken back
    current: bool


class _RuleStatus(TypedDict):
    action: str
    hits: int  # of the rule, on all its operations
    name: str
    op: str
    state: str


class RuleStatus(_RuleStatus, total=False):
    """RuleStatus is one rule on one operation. State is enforced, monitored, audit, degraded, not observed or no effect."""

    effective: str  # what is done instead, when it is not the action
    line: int  # in the policy's file
    residual: str  # the condition that user space decides
    rung: str
    stricter: int  # of a candidate's rule: how often it decided, and more strictly than the active policies
    user: List[str]  # the fields that user space decides
    why: str  # when it is degraded or not observed


class _RungTry(TypedDict):
    ok: bool
    rung: str


class RungTry(_RungTry, total=False):
    """RungTry is one rung that was tried."""

    error: str


class _ScanEnd(TypedDict):
    bytes: int
    matched: int  # events


class ScanEnd(_ScanEnd, total=False):
    """ScanEnd says what a scan was, once it is over."""

    cut: bool  # there was more than the limit
    damaged: List[str]  # files that could not be read, or in part
    error: str  # why it ended before the end
    lost_bytes: int  # of logs, that are no records


class ScanProgress(TypedDict):
    """ScanProgress is how much of the history has been gone through."""

    all: int
    done: int  # bytes


class _Shadow(TypedDict):
    active_generation: int
    on: bool
    operations: List[ShadowCount]  # on which it has judged
    policies: List[PolicyStatus]  # those that were given; the candidate is the active policies with these added or replaced


class Shadow(_Shadow, total=False):
    """Shadow is GET /v1/shadow, and the answer to PUT and DELETE: the candidate that is judged beside the active policies, or the last one."""

    ended: str  # why it ended, when nobody ended it
    generation: int
    since: str
    total_ns: int  # that PUT took


class ShadowCount(TypedDict):
    """ShadowCount is how often a candidate judged an operation, and how often it was stricter or laxer than the active policies."""

    judged: int
    laxer: int
    op: str
    stricter: int


class _Source(TypedDict):
    source: str


class Source(_Source, total=False):
    name: str


class Stats(TypedDict):
    behind: int
    crowded: int
    ended: int
    ends_lost: int
    open: int
    reports: int


class _Status(TypedDict):
    containers: ContainerCount
    filtered: int  # by the part of a rule that runs in user space
    flows: FlowStatus
    generation: int
    history: HistoryStatus
    keep: KeepInfo
    kernel: str
    kernel_map_bytes: int
    kernel_missed: int
    kernel_no_count: int
    kernel_no_engine: int
    kernel_no_identity: int
    kernel_no_listener: int  # no room for who listens at an address or connects from it, so that rules on that were strict
    kernel_no_name: int  # no room for the domain name of an address, which rules then know a moment later, or not
    kernel_no_scratch: int  # What should not happen in the kernel: no working memory for a judgement, a thread without an identity, no room for a process's arguments and ancestors, or for a count of a rate, a hook that had lost what judges for it, a program that was skipped because it was running already on that CPU.
    kernel_no_texts: int
    operations: List[OpCount]
    pid: int
    policies: List[PolicyMode]
    processes: int
    refused: int  # connections and streams beyond the limits
    rss_bytes: int
    rules: int
    socket: str
    started: str
    subscriber_lost: int  # all subscribers together
    subscribers: int
    undecoded: int  # records that could not be read
    unnamed_rules: int  # events whose generation was already forgotten
    uptime_ns: int  # nanoseconds


class Status(_Status, total=False):
    """Status is GET /v1/status."""

    confirm_by: str  # else it is taken back
    peer: Peer  # who asked
    recheck: RecheckStatus  # the last one; absent when there was none
    revision: int  # in force; 0 without a state directory
    version: str


class Sum(TypedDict):
    protocol: str
    received: Traffic
    sent: Traffic


class TLS(TypedDict, total=False):
    """TLS is what a ClientHello says in the clear."""

    alpn: List[str]
    encrypted: bool  # Encrypted tells of an encrypted ClientHello: SNI is the outer one then, and not the name that is meant. Or it is the one that is meant: browsers send the extension always, filled with random bytes where they have no key, and nobody but the server can tell one from the other.
    ja3: str  # the MD5 in hexadecimal
    ja4: str
    quic: bool
    sni: str  # as it was sent; bytes that are no text as \DDD, here and in ALPN
    truncated: bool  # Cut tells that only the beginning of the ClientHello was seen. There are no fingerprints of it then.
    version: str  # the highest that is offered: "1.3"
    versions: List[str]  # all that are offered, highest first, without GREASE


class _Target(TypedDict):
    exec_id: str
    pid: int
    user: TargetUser


class Target(_Target, total=False):
    """Target is the process that an operation acts on, or reaches."""

    exe: TargetExe


class TargetExe(TypedDict, total=False):
    path: str


class TargetUser(TypedDict, total=False):
    id: int


class _Top(TypedDict):
    generation: int
    interval_ns: int  # nanoseconds
    kernel_map_bytes: int
    operations: List[TopOp]  # of which something was seen
    other_processes: TopCount
    policies: int
    processes: List[TopProcess]  # busiest first
    rss_bytes: int
    rules: List[TopRule]  # that matched, busiest first
    subscriber_lost: int
    subscribers: int
    time: str
    trouble: int  # what should not happen in the kernel, as the status names it
    undecoded: int  # records that could not be read


class Top(_Top, total=False):
    """Top is one line of GET /v1/top: what was in an interval."""

    hooks: List[TopHook]  # that ran, dearest first; with cost alone
    hooks_error: str  # why they are not timed
    revision: int  # in force; 0 without a state directory


class TopCount(TypedDict):
    """TopCount is how many events came, with those that were folded into them, and in how many of them an act was, or would have been, stopped."""

    denied: int  # or killed for
    events: int
    would: int  # it was monitored


class TopHook(TypedDict):
    """TopHook is a kernel program, how often it ran, and for how long."""

    program: str
    runs: int
    time_ns: int  # nanoseconds


class TopOp(TypedDict):
    """TopOp is an operation: the kernel's counters, and the events that came."""

    delivered: int
    denied: int  # or killed for
    events: int
    folded: int
    lost: int
    op: str
    rung: str
    seen: int
    would: int  # it was monitored


class _TopProcess(TypedDict):
    denied: int  # or killed for
    events: int
    pid: int
    would: int  # it was monitored


class TopProcess(_TopProcess, total=False):
    """TopProcess is a process, and what came of it."""

    container: str  # its name, or its id
    exe: str
    unit: str
    user: str


class _TopRule(TypedDict):
    action: str
    hits: int
    policy: str
    rule: str


class TopRule(_TopRule, total=False):
    """TopRule is a rule, and how often it matched."""

    monitor: bool


class Traffic(TypedDict):
    """Traffic is what went one way."""

    bytes: int
    packets: int  # segments of TCP, datagrams, messages; 0 of Unix streams, which have none


class _User(TypedDict):
    id: int


class User(_User, total=False):
    """User is the effective user of a process. Name is empty when it could not be found."""

    name: str


class _Why(TypedDict):
    active_generation: int
    event: Event
    rules: List[Reason]


class Why(_Why, total=False):
    """Why is GET /v1/events/ID/why: the event, and the rules by which it was judged, as they were then, strictest first."""

    generation: int  # of the policies that judged; 0 when none did
    notes: List[str]  # what is not known any more, or has changed since
    unnamed: int  # Unnamed is how many clauses matched beyond the rules that the event names; 255 at most are counted.


class peerJSON(TypedDict):
    """The mirrors by which JSON is read back, on the slow path."""

    exe: peerJSONExe
    exec_id: str
    pid: int


class peerJSONExe(TypedDict):
    path: str

class APIError(Exception):
    """An answer that is not a success.

    status: of HTTP: 400 a bad request, 403 not allowed, 404 nothing by that name, 409 not now, 422 a bad policy, 503 too much at once.
    message: what is wrong, and what would help.
    details: the faults of policies: where each is, and what to write instead.
    """

    def __init__(self, status: int, message: str, details: List[Detail]):
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details

    def __str__(self) -> str:
        lines = [f"{self.status}: {self.message}"]
        for d in self.details:
            where = ":".join(str(d[k]) for k in ("file", "line", "column") if d.get(k))  # type: ignore[literal-required]
            hint = f" ({d['hint']})" if d.get("hint") else ""
            lines.append(f"  {where}: {d['msg']}{hint}")
        return "\n".join(lines)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: Optional[float]):
        super().__init__("pavise", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        end = time.monotonic() + 5
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            try:
                return self.sock.connect(self._path)
            except BlockingIOError:  # more wait at the socket than it can hold
                self.sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
            except BaseException:
                self.sock.close()
                raise


def _policies(policies: Union[str, bytes], sets: Optional[Mapping[str, bytes]], part: str, prefix: str) -> Tuple[bytes, str]:
    """The body of a request that sends policies, and what it is."""
    data = policies.encode() if isinstance(policies, str) else policies
    if not sets:
        return data, "application/yaml"
    boundary = secrets.token_hex(24)
    out = b""
    for name, content in [(part, data)] + [(prefix + n, c) for n, c in sets.items()]:
        if any(c in name for c in '"\r\n\\'):
            raise ValueError(f"set {name!r}: a name with quotes or line ends cannot be sent")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="file"\r\n\r\n'
        out += head.encode() + content + b"\r\n"
    return out + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class _Base:
    def __init__(self, path: str = SOCKET, timeout: float = 60):
        """path is the agent's socket. timeout, in seconds, is for each answer; a stream may be silent for longer."""
        self.path = path
        self.timeout = timeout

    def _open(
        self, method: str, path: str, query: Mapping[str, Any], body: Optional[bytes] = None, kind: str = "", stream: bool = False
    ) -> Tuple[_Connection, http.client.HTTPResponse]:
        given = [(k, v) for k, vs in query.items() if vs is not None for v in (vs if isinstance(vs, list) else [vs])]
        url = path + ("?" + urllib.parse.urlencode([(k, int(v) if isinstance(v, bool) else v) for k, v in given]) if given else "")
        conn = _Connection(self.path, self.timeout)
        try:
            try:
                conn.request(method, url, body=body, headers={"Content-Type": kind} if kind else {})
            except (BrokenPipeError, ConnectionResetError):
                pass  # the agent has refused before it had read everything: it says why
            answer = conn.getresponse()
            if answer.status >= 300:
                raise _error(answer)
            if stream and conn.sock is not None:
                conn.sock.settimeout(None)
            return conn, answer
        except BaseException:
            conn.close()
            raise

    def _text(self, *args: Any) -> str:
        conn, answer = self._open(*args)
        try:
            return answer.read().decode()
        finally:
            conn.close()

    def _json(self, *args: Any) -> Any:
        return json.loads(self._text(*args))

    def _lines(self, *args: Any) -> Iterator[Any]:
        conn, answer = self._open(*args, stream=True)
        try:
            for line in answer:
                yield json.loads(line)
        finally:
            conn.close()


def _error(answer: http.client.HTTPResponse) -> APIError:
    text = answer.read().decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        return APIError(answer.status, error["message"], error.get("details", []))
    except (ValueError, KeyError, TypeError):
        return APIError(answer.status, text.strip() or answer.reason, [])


def _segment(value: Union[str, int]) -> str:
    return urllib.parse.quote(str(value), safe="")


class Client(_Base):
    """An agent, by its socket. Its methods are the requests that the API answers."""

    def apply_policies(self, policies: Union[str, bytes], sets: Optional[Mapping[str, bytes]] = None, *, file: Optional[str] = None, dry_run: Optional[bool] = None, confirm_within: Optional[str] = None) -> Change:
        """Adds policies or replaces those of the same names, all or none, in one switch.

        PUT /v1/policies, role write.

        file: The name by which errors name the policy file.
        dry_run: Only say what would be.
        confirm_within: Take the change back unless it is confirmed within this time, 1s to 24h.
        policies: YAML documents.
        sets: the files that they name with inSet, by these names.
        """
        return self._json("PUT", "/v1/policies", {"file": file, "dry-run": dry_run, "confirm-within": confirm_within}, *_policies(policies, sets, "policy", "set:"))

    def confirm(self) -> Confirmed:
        """Keeps a change that was made with confirm-within.

        POST /v1/confirm, role write.
        """
        return self._json("POST", "/v1/confirm", {})

    def delete_policy(self, name: str, *, dry_run: Optional[bool] = None, confirm_within: Optional[str] = None) -> Change:
        """Takes a policy away.

        DELETE /v1/policies/{name}, role write.

        name: The name of a policy.
        dry_run: Only say what would be.
        confirm_within: Take the change back unless it is confirmed within this time, 1s to 24h.
        """
        return self._json("DELETE", f"/v1/policies/{_segment(name)}", {"dry-run": dry_run, "confirm-within": confirm_within})

    def doctor(self) -> Doctor:
        """What this machine can do, by which rung, and why not more.

        GET /v1/doctor, role read.
        """
        return self._json("GET", "/v1/doctor", {})

    def end_learning(self) -> Learning:
        """Ends that; what was seen is kept.

        DELETE /v1/learning, role write.
        """
        return self._json("DELETE", "/v1/learning", {})

    def end_shadow(self) -> Shadow:
        """Ends the candidate.

        DELETE /v1/shadow, role write.
        """
        return self._json("DELETE", "/v1/shadow", {})

    def events(self, *, follow: Optional[bool] = None, limit: Optional[int] = None, where: Optional[str] = None) -> Iterator[Event]:
        """The last events, and with follow those to come, one a line. A reader that is too slow misses events: an event agent.lost says how many. One that takes nothing for 10 seconds is cut off.

        GET /v1/events, role read.

        follow: Go on with the events to come.
        limit: At most this many of the kept events; without it all, or none with follow.
        where: A condition in CEL; other events are left out, but never what was lost.
        """
        return self._lines("GET", "/v1/events", {"follow": follow, "limit": limit, "where": where})

    def flows(self, *, follow: Optional[bool] = None, begun: Optional[bool] = None, ended: Optional[bool] = None, where: Optional[str] = None) -> Iterator[Event]:
        """The flows that are open, as events net.flow, one a line. With follow, those that end from now on, those that were denied, and every ten seconds those that go on.

        GET /v1/flows, role read.

        follow: What happens from now on.
        begun: With follow: also the first report of a flow that goes on.
        ended: Without follow: also the last flows that ended, before the others.
        where: A condition in CEL; other flows are left out.
        """
        return self._lines("GET", "/v1/flows", {"follow": follow, "begun": begun, "ended": ended, "where": where})

    def health(self) -> Health:
        """Whether the agent answers.

        GET /healthz, role read.
        """
        return self._json("GET", "/healthz", {})

    def history(self, *, from_: Optional[str] = None, to: Optional[str] = None, where: Optional[str] = None, group: Optional[List[str]] = None, limit: Optional[int] = None) -> Iterator[HistoryLine]:
        """A search of the history on disk: lines with an event each, or a group with group; with progress now and then; the last one with end.

        GET /v1/history, role read.

        from_: Events from this time on.
        to: Events before this time.
        where: A condition in CEL.
        group: A field by which events are counted; may be given more than once.
        limit: At most this many events or groups.
        """
        return self._lines("GET", "/v1/history", {"from": from_, "to": to, "where": where, "group": group, "limit": limit})

    def isolate(self, body: IsolationRequest, *, dry_run: Optional[bool] = None, confirm_within: Optional[str] = None) -> Isolated:
        """Cuts a subject off from the network: by a policy that the agent writes, and by ending what connections it has.

        POST /v1/isolations, role write.

        dry_run: Only say what would be.
        confirm_within: Take the change back unless it is confirmed within this time, 1s to 24h.
        """
        return self._json("POST", "/v1/isolations", {"dry-run": dry_run, "confirm-within": confirm_within}, json.dumps(body).encode(), "application/json")

    def isolations(self) -> IsolationList:
        """The subjects that are cut off from the network.

        GET /v1/isolations, role read.
        """
        return self._json("GET", "/v1/isolations", {})

    def learned(self) -> Iterator[Act]:
        """What was seen of the subject: acts that differ, one a line.

        GET /v1/learning/acts, role read.
        """
        return self._lines("GET", "/v1/learning/acts", {})

    def learning(self) -> Learning:
        """What is being learned of a subject, or was last.

        GET /v1/learning, role read.
        """
        return self._json("GET", "/v1/learning", {})

    def log(self) -> LogLevel:
        """The least level of the agent's log.

        GET /v1/log, role read.
        """
        return self._json("GET", "/v1/log", {})

    def metrics(self) -> str:
        """Metrics, for Prometheus.

        GET /metrics, role read.
        """
        return self._text("GET", "/metrics", {})

    def openapi(self) -> Dict[str, Any]:
        """This document.

        GET /v1/openapi.json, role read.
        """
        return self._json("GET", "/v1/openapi.json", {})

    def policies(self) -> PolicyList:
        """The active policies, rule by rule.

        GET /v1/policies, role read.
        """
        return self._json("GET", "/v1/policies", {})

    def policy(self, name: str) -> PolicyStatus:
        """One policy, with its source.

        GET /v1/policies/{name}, role read.

        name: The name of a policy.
        """
        return self._json("GET", f"/v1/policies/{_segment(name)}", {})

    def processes(self) -> ProcessList:
        """The process table, with what ended or was replaced a while ago.

        GET /v1/processes, role read.
        """
        return self._json("GET", "/v1/processes", {})

    def promote(self, *, max_stricter: Optional[int] = None, dry_run: Optional[bool] = None, confirm_within: Optional[str] = None) -> Change:
        """Makes the policies of the candidate active, all or none.

        POST /v1/shadow/promote, role write.

        max_stricter: Refuse when the candidate was stricter than the active policies more often than this.
        dry_run: Only say what would be.
        confirm_within: Take the change back unless it is confirmed within this time, 1s to 24h.
        """
        return self._json("POST", "/v1/shadow/promote", {"max-stricter": max_stricter, "dry-run": dry_run, "confirm-within": confirm_within})

    def ready(self) -> Readiness:
        """Whether the agent does what it is for. The status is 503, with the same body, when it does not.

        GET /readyz, role read.
        """
        return self._json("GET", "/readyz", {})

    def release(self, name: str, *, dry_run: Optional[bool] = None, confirm_within: Optional[str] = None) -> Change:
        """Lets an isolated subject go.

        DELETE /v1/isolations/{name}, role write.

        name: The name of a policy.
        dry_run: Only say what would be.
        confirm_within: Take the change back unless it is confirmed within this time, 1s to 24h.
        """
        return self._json("DELETE", f"/v1/isolations/{_segment(name)}", {"dry-run": dry_run, "confirm-within": confirm_within})

    def revision(self, number: int) -> RevisionStatus:
        """One revision, with its documents.

        GET /v1/revisions/{number}, role read.

        number: The number of a revision.
        """
        return self._json("GET", f"/v1/revisions/{_segment(number)}", {})

    def revisions(self) -> RevisionList:
        """The revisions that are kept, oldest first, without their documents.

        GET /v1/revisions, role read.
        """
        return self._json("GET", "/v1/revisions", {})

    def rollback(self, number: int, *, dry_run: Optional[bool] = None, confirm_within: Optional[str] = None) -> Change:
        """Puts the contents of a revision into force again; 0 is the one before.

        POST /v1/revisions/{number}/rollback, role write.

        number: The number of a revision.
        dry_run: Only say what would be.
        confirm_within: Take the change back unless it is confirmed within this time, 1s to 24h.
        """
        return self._json("POST", f"/v1/revisions/{_segment(number)}/rollback", {"dry-run": dry_run, "confirm-within": confirm_within})

    def set_log(self, body: LogLevel) -> LogLevel:
        """Sets the least level of the agent's log, until it ends.

        PUT /v1/log, role admin.
        """
        return self._json("PUT", "/v1/log", {}, json.dumps(body).encode(), "application/json")

    def set_mode(self, name: str, body: ModeRequest, *, dry_run: Optional[bool] = None, confirm_within: Optional[str] = None) -> Change:
        """Puts a policy into a mode.

        PUT /v1/policies/{name}/mode, role write.

        name: The name of a policy.
        dry_run: Only say what would be.
        confirm_within: Take the change back unless it is confirmed within this time, 1s to 24h.
        """
        return self._json("PUT", f"/v1/policies/{_segment(name)}/mode", {"dry-run": dry_run, "confirm-within": confirm_within}, json.dumps(body).encode(), "application/json")

    def set_shadow(self, policies: Union[str, bytes], sets: Optional[Mapping[str, bytes]] = None, *, file: Optional[str] = None) -> Shadow:
        """Has the active policies, with those of the body added or replaced, judged beside the active ones, without effect.

        PUT /v1/shadow, role write.

        file: The name by which errors name the policy file.
        policies: YAML documents.
        sets: the files that they name with inSet, by these names.
        """
        return self._json("PUT", "/v1/shadow", {"file": file}, *_policies(policies, sets, "policy", "set:"))

    def shadow(self) -> Shadow:
        """The candidate that is judged beside the active policies, and what it found.

        GET /v1/shadow, role read.
        """
        return self._json("GET", "/v1/shadow", {})

    def start_learning(self, body: LearnRequest) -> Learning:
        """Begins to note what a subject does.

        PUT /v1/learning, role write.
        """
        return self._json("PUT", "/v1/learning", {}, json.dumps(body).encode(), "application/json")

    def status(self) -> Status:
        """How the agent is, and which role you have.

        GET /v1/status, role read.
        """
        return self._json("GET", "/v1/status", {})

    def top(self, *, interval: Optional[str] = None, count: Optional[int] = None, rows: Optional[int] = None, cost: Optional[bool] = None) -> Iterator[Top]:
        """What goes on, a line for each interval: rates, rules, the busiest processes, loss, memory, and with cost what each hook costs.

        GET /v1/top, role read.

        interval: The time between two lines, 200ms to 1h; 2s without it.
        count: End after this many lines; without it, or with 0, go on.
        rows: At most this many processes and rules a line, the busiest; 20 without it, 0 for none, and never more than 1000.
        cost: Have the kernel time the hooks. While a reader asks for this, each run of every BPF program of the machine takes some tens of nanoseconds longer.
        """
        return self._lines("GET", "/v1/top", {"interval": interval, "count": count, "rows": rows, "cost": cost})

    def why(self, id: int) -> Why:
        """The rules that judged a kept event, each condition as a tree with its results and values.

        GET /v1/events/{id}/why, role read.

        id: The number of an event.
        """
        return self._json("GET", f"/v1/events/{_segment(id)}/why", {})
