"""Every number of zbroker, with its unit last in the name and its reason beside it.

Nothing else in the tree holds a bound, a wait or a size of its own. Relations between numbers are
asserted at the end of this file, so that a change which breaks one fails at import. What a user may
tune is a key of `config.py`, whose default is a number of this file.
"""

# --- wire: frames and headers (PROTOCOL.md, Frames) -------------------------------------------
PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1
ADDRESS_FRAMES_MAX = 4
HEADER_BYTES_MAX = 64 * 1024
REPLY_HEADER_BYTES_MAX = 1 << 20  # plain replies carry their table in the header
REQUEST_FRAMES_MAX = 64  # payload frames of a request
REPLY_FRAMES_MAX = 1024  # payload frames of a reply
REQUEST_ID_CHARS_MAX = 64
INTEGER_MAX = (1 << 53) - 1  # JavaScript reads no larger integer exactly
QUEUES_A_REQUEST_MAX = 512  # 512 fetch entries are 13 kB of header and 60 us to decode
RETURN_ADDRESS_BYTES_MAX = 255  # a ROUTER gives no longer ones

# --- wire: names and messages (PROTOCOL.md, Limits) -------------------------------------------
TOPIC_CHARS_MAX = 127
GROUP_CHARS_MAX = 120
BODY_BYTES_MAX = 4 << 20
TAG_BYTES_MAX = 127
KEYS_MAX = 16
KEY_BYTES_MAX = 128
HEADERS_BYTES_MAX = 32 * 1024  # names and values in sum
BATCH_RAW_BYTES_MAX = 16 << 20  # payload before compression
LZ4_AROUND_BYTES = 64 * 1024  # that lz4 may make a payload longer; its own 64 KiB blocks: 3 kB
BATCH_MESSAGES_MAX = 65_536  # bounds what one decode may hold up the loop for
BATCH_HEADER_BYTES = 52
REQUEST_BYTES_MAX = BATCH_RAW_BYTES_MAX + (1 << 20)  # all payload frames of one request
FETCH_BYTES_MAX = 16 << 20  # of one reply; one record always comes, so a reply may exceed it once
FETCH_BYTES_DEFAULT = 512 * 1024  # hotpath 3: 256 to 512 KiB and two requests in flight
PLAIN_FETCH_MESSAGES_MAX = 1000
TAGS_A_FILTER_MAX = 64
TAG_BITS_KEPT = 4_096  # tags whose bit is remembered by a process
FRAME_BYTES_MAX = REQUEST_BYTES_MAX + HEADER_BYTES_MAX  # ZMQ_MAXMSGSIZE of every bound socket
COMPRESS_FROM_BYTES = 1024
COMPRESS_GAIN_PERCENT = 10
COMPRESS_SKIP_BATCHES = 15  # of a topic, sent as they are after one that lz4 did not shrink
CLIENT_ID_CHARS_MAX = 255
MESSAGE_ID_CHARS_MAX = 127  # far more than any has
TOKEN_CHARS_MAX = 48  # of a lease: term, start and counter in hexadecimal
TOPICS_A_SUBSCRIPTION_MAX = 256
CAUSE_CHARS_MAX = 1_024  # why a message was given back: it stands in its record
NACKS_A_REQUEST_MAX = 64
RETRIES_MAX = 1_000
RETRIES_DEFAULT = 16

# --- wire: waits ---------------------------------------------------------------------------
WAIT_MS_MAX = 30_000
REPLY_GRACE_MS = 5_000  # a client waits wait_ms + this for an answer
PING_EVERY_MS = 500  # while requests are outstanding
PING_SILENCES_MAX = 3
PING_BYTES = 512 * 1024  # that are outstanding allow one more: 8 Mbit/s
PING_DOUBLINGS_MAX = 4  # of these for an end that was heard and then was not: 24 s
PING_PATIENCE_MAX = 120  # silences in any case: a minute
NOT_YET_WAIT_MS = 1_000  # a request for a topic id the worker has not applied is held so long

# --- net: sockets (reliability B) --------------------------------------------------------------
SOCKET_HWM_MESSAGES = 1_000  # a peer and direction
SOCKET_BACKLOG = 1_024
HANDSHAKE_MS = 3_000
HEARTBEAT_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 30_000  # a frame counts when it is whole: 4 MiB in 30 s is 1.1 Mbit/s
HEARTBEAT_TTL_MS = 30_000
RECONNECT_MS = 20
RECONNECT_MAX_MS = 1_000
RECONNECT_INNER_MAX_MS = 50  # over ipc: cheap, and a restarted worker is found at once
SOCKETS_MAX = 20_000
LIBZMQ_VERSION_MIN = (4, 3, 5)
SWITCH_INTERVAL_S = 0.0005  # of server processes with a helper thread (hotpath 1)
MEMORY_BYTES_MAX = 1 << 30  # RLIMIT_DATA of every server process: endless multipart ends here

# --- worker: turns (hotpath 1) -------------------------------------------------------------------
TURN_REQUESTS_MAX = 256
TURN_BYTES_MAX = 2 << 20
TURN_RAW_BYTES_MAX = 32 << 20  # that publishes of one turn unpack to: at worst half a second
ANSWERS_BYTES_MAX = 128 << 20  # held: 256 fetches of 16 MiB in a turn are too many
SYNC_INLINE_AVERAGE_MS = 1.0
SYNC_INLINE_LEAVE_MS = 2.0
SYNC_INLINE_BYTES_MAX = 3 << 20  # only a turn with a checkpoint has more
SYNC_INLINE_RETURN_FAST = 300  # so many fast syncs in a row before the helper is left again
SYNC_AVERAGE_WEIGHT = 0.05
GATHER_PERCENT = 10
GATHER_MAX_MS = 2.0
UNSYNCED_BYTES_MAX = 64 << 20  # decided and not on disk: beyond it publishing is BUSY
MARK_IDLE_MS = 100
LOOP_POLL_MAX_MS = 1_000
PARKED_POLLS_MAX = 10_000
PARKED_HEADERS_BYTES_MAX = 16 << 20  # of what waits: what is made of a header has 15 times its size
REPLIES_HELD_MAX = 65_536

# --- store (FORMAT.md) ----------------------------------------------------------------------------
FORMAT_VERSION = 2
RECORD_ALIGN_BYTES = 16
RECORD_HEADER_BYTES = 80
RECORD_BYTES_MAX = REQUEST_BYTES_MAX + TURN_BYTES_MAX + (1 << 20)
RECORD_JOINED_BYTES_MAX = 4096  # a small record is one buffer: pwritev takes 1024, a copy is cheap
META_BYTES_MAX = 64 * 1024
SEGMENT_BYTES_MIN = 8 << 20
SEGMENT_BYTES_MAX = 256 << 20
SEGMENT_RECORDS_MAX = 262_144  # bounds the index in memory (12 MiB) and the replay (1.5 s)
SEGMENT_ZERO_CHUNK_BYTES = 1 << 20
SEGMENT_ZERO_PAUSE_MS = 16  # with the chunk: at most 64 MiB/s beside the log
SEGMENT_EPOCHS_BYTES = 64 * 1024  # of every segment, for EPOCH, MARK and ROLL alone: 250 restarts
WRITE_BUFFERS_MAX = 1_024  # IOV_MAX of pwritev
CHECKPOINT_CHUNK_BYTES = 1 << 20
SNAPSHOT_EVERY_BYTES = 64 << 20
SNAPSHOT_EVERY_RECORDS = 65_536
SCAN_WINDOW_BYTES = 4 << 20  # one read of recovery and check
FINDINGS_MAX = 100  # of one check; who has so many needs no more
INDEX_CACHE_BYTES = 16 << 20
OPEN_SEGMENTS_MAX = 64  # file descriptors for reading sealed segments
RESERVE_BYTES = 2 << 20  # room for state records when publishing is refused; already allocated
CARRY_PERCENT = 25  # of a segment, in the same way: for what retention carries on a full disk
MIN_FREE_PERCENT = 5
MIN_FREE_BYTES = 2 << 30
FREE_CHECK_EVERY_MS = 1_000
RETENTION_MS = 72 * 3_600_000
RETENTION_CHECK_EVERY_MS = 10_000
OFFSET_JUMP = 1 << 24  # after a start that may have lost acknowledged bytes (ARCHITECTURE 6)
READ_RECORDS_MAX = 4_096  # records one fetch may verify: bounds the turn
FETCH_RAW_BYTES_MAX = 16 << 20  # that one fetch unpacks or filters, and one batch more: 0.5 s

# --- shard ---------------------------------------------------------------------------------------
SHARDS_MAX = 64
QUEUES_A_TOPIC_DEFAULT = 8
QUEUES_A_TOPIC_MAX = 1_024
TOPICS_MAX = 100_000
QUEUES_MAX = 1_000_000  # of a broker group: 550 bytes each, half of MEMORY_BYTES_MAX in one shard
SETTINGS_BYTES_MAX = 1_024  # of a topic, as JSON: they stand in every row that is told
DELETED_NAME_MS = 3_600_000  # a deleted name is not created on send for so long
PRODUCERS_MAX = 100_000
PRODUCER_IDLE_MS = 3_600_000
PRODUCER_WINDOW_BATCHES = 32  # in flight a queue, and remembered results
PROGRESS_RANGES_MAX = 1_000  # of one group on one queue
PROGRESS_ROWS_MAX = 700_000  # of all groups on all queues of a shard: 10,000 groups x 64 queues
PROGRESS_ROW_BYTES = 140  # of these, in memory
PROGRESS_RANGES_SUM_MAX = 500_000  # of all rows of a shard; each is COMMIT_RANGE_BYTES in memory
PROGRESS_ROWS_A_PAGE = 65_536  # in one row of a checkpoint: at most 14 bytes each
GROUPS_MAX = 100_000
PROGRESS_INTERVAL_MS = 1_000
PROGRESS_INTERVAL_MAX_MS = 10_000
PROGRESS_BYTES_A_SECOND = 64 * 1024
PROGRESS_PERCENT = 10
PROGRESS_ENTRIES_A_REQUEST_MAX = 512
PROGRESS_HELD_BYTES = 256 * 1024  # of held commits: beyond it they are written at once
COMMIT_RANGE_BYTES = 128  # of such an answer in memory: a range
COMMIT_HEADER_TIMES = 8  # what is made of a header has so many times its size
COMMITS_HELD_BYTES_MAX = 32 << 20  # of answers that wait for these: beyond it commits are BUSY
PROGRESS_ENTRY_BYTES = 24  # of a PROGRESS record, for the budget; ranges come on top
PROGRESS_RANGE_BYTES = 18  # of such an entry: two numbers
PLAIN_MESSAGE_BYTES = 16  # array and body heads of a message that came in plain form
RECORD_AROUND_BYTES = RECORD_HEADER_BYTES + RECORD_ALIGN_BYTES
PUBLISH_CREDIT_BYTES = 256 * 1024  # publishes that one look at the log's room allows
PROGRESS_AROUND_BYTES = 4_096  # what the records of held commits have around their entries
STATE_REQUEST_BYTES = 1 << 20  # more than the state records of one request but progress
CLAMP_ROW_BYTES = 16  # [queue id, offset] of LOG_START
PROGRESS_RECORD_NUMBERS = 20_000  # of one PROGRESS record: some 180 kB
ENDED_TOPICS_KEPT = 10_000  # ids of ended topics that a shard still knows as such
READS_A_POLL_MAX = 4  # how often a filter that drops everything reads on before it answers
SKIPPED_ROWS_MAX = 2_000  # of one LOG_START's meta: some 30 kB
FOLLOW_WAIT_MS = 10_000
CONFIRM_WAIT_MS = 5_000  # a create answers when the live shards have confirmed, at most so long
FOLLOW_TOPICS_MAX = 500  # topics in one answer to a follower
ADOPT_TOPICS_MAX = 100  # in one header of a follower: names and queues of each
FOLLOW_QUEUES_MAX = 4_000  # queues of these in sum: their records, 1 MB, fit into the reserve

# --- groups, leases, retry (ARCHITECTURE 5; rocketmq.md 1.4, 1.7) --------------------------------
MEMBERS_A_GROUP_MAX = 10_000
MEMBERS_MAX = 100_000  # of all groups
MEMBER_EXPIRY_MS = 30_000  # silence after which a member is out
MEMBER_POLL_MS = 10_000  # a member polls so long at a time: a third of its expiry
MEMBER_PROBE_MS = 3_000  # an older session of a client id must show itself within
JOINS_GATHERED_MS = 200
MISMATCHES_SHOWN_MAX = 4  # differences named in one error
HASH_POINTS = 10  # of a member on the consistent-hash ring, as RocketMQ
GROUPS_A_FOLLOW_MAX = 200  # in one answer to a follower
GROUPS_A_PAGE_MAX = 500
ENDED_GROUPS_KEPT_MS = 3_600_000
ENDED_GROUPS_TOLD_MAX = 10_000  # by the directory: beyond it a group_delete is BUSY
ENDED_GROUPS_KEPT = 50_000  # ids of ended groups that a shard still knows as such
SUBSCRIPTION_QUEUES_MAX = 32_768  # that exist at a join: their births, 460 kB, fit into the reserve
BIRTH_BYTES = 14  # of a GROUP record: one queue and where it begins
FOLLOW_BIRTHS_A_QUEUE = 16  # births that weigh as one QUEUE record
FOLLOW_ROW_BYTES = 512  # of a topic's row but for its settings and queues, rounded up
FOLLOW_QUEUE_BYTES = 16  # of a queue in such a row: it stands in three lists
MEMBER_QUEUES_MAX = 100_000  # told to one member: 600 kB, below REPLY_HEADER_BYTES_MAX
GROUP_ROWS_BYTES_MAX = 64 << 20  # subscriptions and configs of all groups: in each checkpoint
GROUPS_DIVIDED_A_TURN = 64  # a topic of 10,000 groups that grows would stop the loop for 0.3 s
MEMBERS_OUT_A_TURN = 256  # records of silent members that one turn writes
DEADLINE_STEP_MS = 50  # deadlines of members are kept in steps: one is moved without a search
STALL_MS = 2 * LOOP_POLL_MAX_MS  # a loop that has not turned for so long has stalled itself
LEASES_MAX = 700_000  # of a shard, held or not: as many as PROGRESS_ROWS_MAX
LEASE_BYTES = 400  # of these, in memory
LEASES_A_TURN = 1_024  # a group with more is not encoded ahead of the checkpoint: 0.3 ms
LEASE_GROUPS_A_TURN = 8  # at most that are
LEASES_A_PAGE = 8_192  # in one row of a checkpoint: at most 112 bytes each
LEASE_EXPIRY_MS = 30_000  # silence of a holder after which somebody who waits gets the queue
LEASE_RENEW_MS = 10_000
LEASE_DRAIN_MS = 20_000  # a holder that is told `wanted` finishes what runs, at most so long
LEASE_YIELD_MS = 1_000  # given up because `wanted`: asked for again after, or by a newer list
LEASE_TAKEN_AFTER_MS = 25_000  # and then it is taken from a living one, drain and a journey
LEASE_STOP_MS = 20_000  # a member hands nothing out when its last renewed send is so old
LEASE_WAITERS_MAX = 10_000  # parked `acquire` of a shard
LEASES_ENDED_AT_ONCE = 4_000  # of a dead session: their record has 100 kB
PROGRESS_ROW_TEXT_BYTES = 128  # of an answer: progress of one queue without its ranges
PROGRESS_TEXT_BYTES_MAX = 450_000  # of these and their ranges in one answer
RANGE_TEXT_BYTES = 36  # of an answer: [first,end] of two numbers of 16 digits
RETRY_LADDER_S = (10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1_200, 1_800, 3_600,
                  7_200)
CONSUME_TIMEOUT_S = 15 * 60.0
LAG_RECORDS_MAX = 4_096  # that one row of `lag` may unpack to count what a filter matches
LAG_RAW_BYTES_MAX = 8 << 20  # that all rows of a turn may unpack for that: 0.1 s
LAG_LOOK_BYTES = 64  # of these, for each message and each index entry that is looked at
DEAD_LETTERS_BYTES_MAX = 64 << 20  # of a shard, kept beyond retention; the oldest go first
DEAD_LETTERS_PERCENT = 25  # of the log's byte budget, if that is less
DEAD_LETTERS_A_STEP = 1_024  # moved out of retention's way in one step: 5 ms
NACK_AROUND_BYTES = 24 * 1024  # of a nack in the log beside its batch: facts, and the ranges
NACKS_REMEMBERED = 16_384  # places of messages given back lately: 3 MB

# --- timers --------------------------------------------------------------------------------------
TIMER_AHEAD_MS_MAX = 366 * 86_400_000
TIMERS_MAX = 4_000_000  # pending in a shard: 46 bytes each
TIMERS_BYTES_MAX = 4 << 30  # of their copies in the log of a shard: they are carried forward
TIMERS_PERCENT = 50  # of the log's byte budget: with more retention would carry for ever
TIMERS_A_TURN = 256  # fired or carried at once: a crowd of one due time never stops the loop
TIMER_OUTCOME_MS = 15 * 60_000  # how long is remembered what became of a timer
TIMER_OUTCOMES_MAX = 16_384  # and of how many: 5 MB
TIMERS_A_PAGE = 1_024  # 40 kB: a row of a checkpoint, and 2 us to move when one is inserted
TIMERS_PAGES_A_STEP = 256  # looked through at once for what is to be carried: 5 ms
TIMER_AROUND_BYTES = 256  # that FIRED or a carried TIMER is longer than the TIMER: id, due time
CARRY_STEP_BYTES = 1 << 20  # carried at once; one record always goes
CARRY_RECORD_BYTES_MAX = (  # the largest
    BODY_BYTES_MAX + HEADERS_BYTES_MAX + 2 * NACK_AROUND_BYTES + LZ4_AROUND_BYTES
)
CARRY_PAUSE_MS = 10  # between two steps: others come between, and the helper can read

# --- nameserver, gateway -------------------------------------------------------------------------
REGISTER_EVERY_MS = 2_000  # a NameServer that has started again knows nobody for so long
REGISTER_EXPIRY_MS = 30_000
REGISTER_DELAY_MS = 50
NAMESERVER_YOUNG_MS = 12_000
BROKERS_MAX = 1_000
ROUTES_TOPICS_MAX = 1_000  # topics in one answer of `routes`
NAMESERVER_ROUTES_MAX = 400_000  # rows in memory, of all brokers: some 300 MB
REGISTER_TOPICS_A_FRAME = 2_000  # of the full state: at most 12 MB with 1,024 queues each
REGISTER_TOPICS_A_MS = 20  # a full state goes out at most so often: 100,000 topics every 5 s
ROUTES_COST_MAX = 900_000  # about the bytes of one answer, below REPLY_HEADER_BYTES_MAX
GATEWAY_RETRY_MS = 50  # a worker that is not there is asked so often: it is seen when it is up
GATEWAY_UNHEARD_BYTES_MAX = 64 << 20  # forwarded to a worker since its last sign of life
GATEWAY_LEAVE_MS = 200  # a stop waits so long for the NameServers to hear of it

# --- supervisor --------------------------------------------------------------------------------
NAMESERVER_PORT = 9_876
GATEWAY_PORT = 10_911
WORKER_PORT = 10_921  # of worker 0; the others follow
PORT_BASE_WORKERS = 10  # with a port base: NameServer + 0, gateway + 1, workers + 10 up
PORT_MAX = 65_535
PORT_BASE_MAX = PORT_MAX - PORT_BASE_WORKERS - SHARDS_MAX
WORKERS_DEFAULT_MAX = 4
DRAIN_MS = 5_000
RESTART_DELAY_MIN_MS = 100
RESTART_DELAY_MAX_MS = 5_000
RESTART_FAILURES_MAX = 5
RESTART_FAILED_EVERY_MS = 30_000
RESTART_REFUSALS_MAX = 3  # before the first ready: the dying of a former life may hold a lock still
EVENT_LINE_BYTES_MAX = 64 * 1024
LOCK_TAKE_S = 0.1  # `status` holds the lock of a data folder for much less
SUPERVISOR_WAIT_MS = 1_000  # a lost wake-up costs no more than this
DOWN_WAIT_MS = 4 * DRAIN_MS  # three stages of a stop, and one for the supervisor itself
TAIL_POLL_S = 1.0  # `tail` looks up so often
TAIL_EXIT_POLL_S = 0.05  # with --exit, whether all has been seen
CONSUME_LOOK_S = 0.2  # `consume` looks up so often, whether it shall end
CONSUME_CHUNK_MESSAGES = 100  # printed, then acknowledged
STATUS_CPU_WINDOW_S = 0.2
STATUS_ASK_S = 1.0
UNIX_PATH_BYTES_MAX = 107  # sun_path without its zero
SILENCE_KILL_MS = 30_000
PROBE_EVERY_MS = 1_000
READY_WAIT_MS = 60_000
LOG_FILE_BYTES = 10 << 20
LOG_FILES = 5
SPARE_FILE_BYTES = 16 * 1024  # kept for broker.json and endpoints.json: 64 workers need 10 kB

# --- bench: how much a floor or a figure is measured with ----------------------------------
BENCH_ECHO_MESSAGES = 20_000
BENCH_ECHO_IN_FLIGHT = 64
BENCH_ECHO_BYTES = 170  # a request's header and one small batch
BENCH_ENCODE_BATCHES = 300
BENCH_BATCHES_A_CALL = PRODUCER_WINDOW_BATCHES  # of `send_many`: as many as are in flight
BENCH_SYNCS = 200
BENCH_BODIES_BYTES = 64 << 20  # of different bodies, then the same ones come again
BENCH_TIMEOUT_S = 60.0
BENCH_PACE = 10_000  # messages a second
BENCH_PACE_STEP_S = 0.001  # a paced producer wakes so often
BENCH_HANDOVERS_MAX = 10  # members that come and go; each costs a second
BENCH_SETTLE_S = 0.5  # after a member has come or gone: joins are gathered for less
BENCH_PAUSE_S = 0.002  # between two messages of a latency run: what it measures is one, not a queue

# --- testing -------------------------------------------------------------------------------------
TESTING_WAIT_S = 60.0  # for something that takes less than one second on a quiet machine
TESTING_LOOK_S = 0.01
TEST_CLOCK_POLL_MS = 5  # a worker under a test's clock looks at it so often
TESTING_LOG_BYTES = 3_000  # of the log, shown beside what did not come

# --- client --------------------------------------------------------------------------------------
CLIENT_TIMEOUT_S = 30.0
CLIENT_CONNECT_S = 5.0
RETRY_MIN_MS = 20
RETRY_MAX_MS = 1_000
ROUTES_REFRESH_MS = 30_000
ROUTES_RETRY_MS = 100
LINGER_S = 0.002
BATCH_MESSAGES = 1_000
BATCH_BYTES = 1 << 20
BUFFER_MESSAGES = 100_000
BUFFER_BYTES = 64 << 20
SEND_DEADLINE_MAX_MS = 120_000  # far below PRODUCER_IDLE_MS: a retry meets its dedupe entry
POLL_MESSAGES_DEFAULT = 500
POLL_WAIT_MAX_S = 3_600.0
LONG_POLL_MS = 15_000
CLOSE_FLUSH_S = 5.0
EXIT_S = 2.0  # a client that nobody closes has so long to flush and to leave its groups
FETCHES_TO_SPARE = 1  # beside those that the queues of a worker fill
FETCHES_BUFFERED = 2  # of a queue, for callers that poll
SHARD_WAIT_MS = 5_000  # a shard that is silent for so long is shown as unknown
LAGS_IN_FLIGHT = 64  # requests at a time when many groups are looked at
DEAD_LETTERS_LISTED = 100  # by default: with their bodies they are in memory
QUEUES_A_FETCH_MAX = 200  # names of 127 characters and all: below CLIENT_HEADER_BYTES
CREATES_IN_FLIGHT = 64  # of topics, on first send
SEND_WAIT_MAX_S = SEND_DEADLINE_MAX_MS / 1000 + 10.0  # a lost I/O thread ends a wait here
PRODUCER_TOPICS_KEPT = 1_024  # of one producer; beyond that it forgets those that are idle
PRODUCES_IN_FLIGHT = 2  # requests a worker; batches grow meanwhile (4: slower over many topics)
PRODUCE_BYTES = 2 << 20  # batches of one request in sum, as a turn of the worker takes
PRODUCE_ENTRY_BYTES = 48  # of a header: one batch without the topic's name
PRODUCE_HEADER_BYTES = 60 * 1024  # of the entries of a request, below HEADER_BYTES_MAX
BATCH_BYTES_A_MESSAGE = 8  # array head and body head of a bare message, rounded up
BATCH_BYTES_A_TEXT = 3  # head of a tag, key or header, whose sizes are below 64 KiB
FETCH_REPLACED_AFTER_MS = 20  # a fetch out for longer is parked: a newer one may end it
FETCH_FILTERED_MS = 1_000  # or for so long, if only a filter can keep its data from coming
PREFETCH_BYTES = 32 << 20
CHUNK_MS = 1.0  # work that a handler's thread takes at a time: far above what taking it costs
CHUNK_MESSAGES_MAX = 500  # and at most so many, so that what hangs holds up few
CHUNK_COST_WEIGHT = 0.2  # of the newest measure in the cost of a handler
CHUNK_LOOK_MS = 10  # what is done of a chunk is acknowledged, and taken over if its owner hangs
CONCURRENCY_DEFAULT = 8
CONCURRENCY_MAX = 1_000  # threads or tasks of a consumer, as RocketMQ
HANDLER_BATCH_MAX = 1_024  # messages of one call, as RocketMQ
DRAIN_S = 20.0  # a stopped consumer waits so long for its handlers
DRAIN_MAX_S = 3_600.0
JOIN_S = 1.0  # and then for its threads, which are at the end of their loops
CONSUME_TIMEOUT_MAX_S = 7 * 86_400.0
NACKS_IN_FLIGHT = 2  # requests a worker
NACK_TRIES_MAX = 12  # of one that is refused for the moment: 7 s; then its message is tried here
NACK_BYTES = 2 << 20  # copies of one request, as a turn of the worker takes; one always goes
PREFETCH_MESSAGES = 1_000  # a queue, of a push consumer; these three as RocketMQ
PREFETCH_SPAN_MESSAGES = 2_000  # from the oldest unfinished message of a queue to the newest
PREFETCH_PUSH_BYTES = 100 << 20  # of all queues of a push consumer, each an equal share
CLIENT_HEADER_BYTES = 48 * 1024  # of the entries of a request: tags and names come on top
CLIENT_ENTRY_BYTES = 112  # of an entry without the topic's name and ranges: numbers, id and token
CLIENT_RANGE_BYTES = 36  # [first, end] of two largest numbers
SUBSCRIBE_GATHERED_MS = 20  # subscriptions made one after another are one join
JOIN_REFUSED_MS = 10_000  # a join that was refused for good reason is tried again so late
RELEASE_TRIES_MAX = 30  # about as long as the lease would need to expire by itself
RELEASE_WAIT_MS = 1_000  # then the directory hears of a leaving member though something runs on

assert RECORD_HEADER_BYTES % RECORD_ALIGN_BYTES == 0
assert BODY_BYTES_MAX < BATCH_RAW_BYTES_MAX < REQUEST_BYTES_MAX < RECORD_BYTES_MAX
assert BATCH_RAW_BYTES_MAX + META_BYTES_MAX + 1024 < FRAME_BYTES_MAX, "a record is one frame"
assert SEND_DEADLINE_MAX_MS * 10 <= PRODUCER_IDLE_MS, "a retry must meet its dedupe entry"
assert TOPICS_MAX * QUEUES_A_TOPIC_DEFAULT <= QUEUES_MAX
assert SYNC_INLINE_BYTES_MAX > TURN_BYTES_MAX
assert (
    PROGRESS_ROWS_MAX * PROGRESS_ROW_BYTES
    + PROGRESS_RANGES_SUM_MAX * COMMIT_RANGE_BYTES
    + LEASES_MAX * LEASE_BYTES
) < MEMORY_BYTES_MAX // 2, "inventing groups does not fill the memory"
assert SEGMENT_BYTES_MIN * (100 - CARRY_PERCENT) // 100 > RESERVE_BYTES + TURN_BYTES_MAX
assert RECORD_BYTES_MAX * CARRY_PERCENT // 100 > CARRY_RECORD_BYTES_MAX, "a full disk is emptied"
assert LONG_POLL_MS <= WAIT_MS_MAX
assert ENDED_GROUPS_KEPT > 2 * ENDED_GROUPS_TOLD_MAX, "what is told again is known as ended"
assert 10 * (PROGRESS_ROW_TEXT_BYTES + PROGRESS_RANGES_MAX * RANGE_TEXT_BYTES) < (
    PROGRESS_TEXT_BYTES_MAX
) < REPLY_HEADER_BYTES_MAX // 2, "each answer has room for ten queues"
assert ANSWERS_BYTES_MAX + FETCH_BYTES_MAX < MEMORY_BYTES_MAX // 4, "two turns fit twice"
assert REGISTER_TOPICS_A_FRAME * REQUEST_FRAMES_MAX >= TOPICS_MAX
assert GATEWAY_UNHEARD_BYTES_MAX > 2 * FRAME_BYTES_MAX
assert ROUTES_COST_MAX < REPLY_HEADER_BYTES_MAX
assert PING_EVERY_MS * PING_SILENCES_MAX < REPLY_GRACE_MS
assert REGISTER_EVERY_MS * 3 <= REGISTER_EXPIRY_MS
assert PRODUCE_HEADER_BYTES < HEADER_BYTES_MAX and PRODUCE_BYTES < REQUEST_BYTES_MAX
assert len(RETRY_LADDER_S) == RETRIES_DEFAULT
assert LEASE_DRAIN_MS < LEASE_TAKEN_AFTER_MS < LEASE_EXPIRY_MS
assert LEASE_STOP_MS + LEASE_RENEW_MS <= LEASE_EXPIRY_MS and MEMBER_POLL_MS * 3 <= MEMBER_EXPIRY_MS
assert TOPIC_CHARS_MAX + CLIENT_ENTRY_BYTES + PROGRESS_RANGES_MAX * CLIENT_RANGE_BYTES < (
    CLIENT_HEADER_BYTES
), "an entry fits into a header, whatever it holds"
assert CLIENT_HEADER_BYTES + TAGS_A_FILTER_MAX * (TAG_BYTES_MAX + 3) + GROUP_CHARS_MAX < (
    HEADER_BYTES_MAX - 1_024
)
assert QUEUES_A_FETCH_MAX * (TOPIC_CHARS_MAX + CLIENT_ENTRY_BYTES) < CLIENT_HEADER_BYTES
