// The machine behind shim.h. One thread of the host runs one block at a time; each of the block's
// threads is a fiber with its own stack, given up at barriers and collectives only.
//
// A thread starts on the stack of one that has returned, if there is one, so that a kernel without
// barriers runs as a plain loop on one stack.

#include "shim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace host {

thread_local Thread* thread = nullptr;
thread_local Grid grid;

namespace {

// --------------------------------------------------------------------------- context switch

// Saves what the calling convention asks a function to keep, then goes on where `to` stopped.
#if defined(__x86_64__)
extern "C" void umaserve_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.type umaserve_switch, @function
umaserve_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size umaserve_switch, .-umaserve_switch
)");

// A stack that starts in `entry` when first switched to.
void* prepare(unsigned char* top, void (*entry)()) {
    void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    *--stack = nullptr;  // where `entry` would return to; aligns as after a call
    *--stack = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--stack = nullptr;
    return stack;
}
#elif defined(__aarch64__)
extern "C" void umaserve_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.type umaserve_switch, %function
umaserve_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size umaserve_switch, .-umaserve_switch
)");

void* prepare(unsigned char* top, void (*entry)()) {
    void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    stack -= 20;
    memset(stack, 0, 160);
    stack[11] = reinterpret_cast<void*>(entry);  // x30
    return stack;
}
#else
// Slower, for other processors: the pointers are to ucontext_t.
void umaserve_switch(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}

constexpr size_t CONTEXT_STACK = 100 << 10;

void* prepare(unsigned char* top, void (*entry)()) {
    uintptr_t at = (reinterpret_cast<uintptr_t>(top) - sizeof(ucontext_t)) & ~uintptr_t(63);
    ucontext_t* context = reinterpret_cast<ucontext_t*>(at);
    getcontext(context);
    context->uc_stack.ss_sp = reinterpret_cast<void*>(at - CONTEXT_STACK);
    context->uc_stack.ss_size = CONTEXT_STACK;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

// ------------------------------------------------------------------------------------- stacks

constexpr size_t PAGE = 4096;
constexpr size_t STACK = 128 << 10;
// One page beyond each stack cannot be touched. Stacks lie an odd number of pages apart, and their
// tops a little more, so that they do not compete for the same lines of the caches.
constexpr size_t SLOT = STACK + PAGE;
constexpr unsigned MAX_THREADS = 1024;
static_assert(SLOT / PAGE % 2 == 1, "odd");

struct Stacks {
    unsigned char* memory = nullptr;
    std::vector<unsigned> free;

    bool make() {
        if (memory != nullptr) return true;
        void* mapped = mmap(nullptr, SLOT * MAX_THREADS, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) return false;
        memory = static_cast<unsigned char*>(mapped);
        for (unsigned i = 0; i < MAX_THREADS; ++i) mprotect(memory + i * SLOT, PAGE, PROT_NONE);
        return true;
    }
    void reset() {
        free.clear();
        for (unsigned i = MAX_THREADS; i-- > 0;) free.push_back(i);
    }
    unsigned char* top(unsigned i) const { return memory + (i + 1) * SLOT - i % 16 * 256; }
    ~Stacks() {
        if (memory != nullptr) munmap(memory, SLOT * MAX_THREADS);
    }
};

// -------------------------------------------------------------------------------------- fibers

enum class State : uint8_t { New, Ready, AtBarrier, InCollective, Finished };

struct Fiber {
    Thread thread;  // first: host::thread points here
    State state;
    unsigned stack;
    void* context;
    Fiber* next;  // in the queue
    // Where it waits.
    const char* file;
    int line;
    // In a collective.
    unsigned mask;
    const void* brought;
    size_t bytes;
    int held;  // deposits of the last collective, or -1
};

// The deposits of one collective.
struct Deposits {
    unsigned readers = 0;  // lanes that may still look
    std::vector<unsigned char> data;
};

struct Warp {
    unsigned lanes;    // that exist
    unsigned waiting;  // in a collective
    unsigned finished;
    std::vector<Deposits> deposits;
};

struct Block {
    Stacks stacks;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> order;
    std::vector<unsigned char> shared;
    Entry entry;
    const void* params;
    unsigned count, at_barrier, finished;
    const char* barrier_file;
    int barrier_line;
    int barrier_sum, last_sum;
    Fiber *head, *tail;
    void* scheduler;  // where the block was started
    bool failed;
    std::string error;

    void push(Fiber* fiber) {
        fiber->next = nullptr;
        (head == nullptr ? head : tail->next) = fiber;
        tail = fiber;
    }
};

thread_local Block block;

Fiber* current() { return reinterpret_cast<Fiber*>(thread); }

void run_threads();

// Goes on with the next thread in the queue, or ends the block. `left`: where this thread goes on
// later.
void give_up(void** left) {
    Fiber* next = block.head;
    if (next == nullptr) {
        umaserve_switch(left, block.scheduler);
        return;
    }
    block.head = next->next;
    thread = &next->thread;
    if (next->state == State::New) {
        next->stack = block.stacks.free.back();
        block.stacks.free.pop_back();
        next->context = prepare(block.stacks.top(next->stack), run_threads);
    }
    next->state = State::Ready;
    umaserve_switch(left, next->context);
}

void open_barrier() {
    block.at_barrier = 0;
    block.last_sum = block.barrier_sum;
    block.barrier_sum = 0;
    for (unsigned rank : block.order) {
        Fiber& fiber = block.fibers[rank];
        if (fiber.state == State::AtBarrier) {
            fiber.state = State::Ready;
            block.push(&fiber);
        }
    }
}

// Runs the current thread, then others that have not begun, on this stack.
void run_threads() {
    void* unused;
    for (;;) {
        Fiber* me = current();
        block.entry(block.params);
        me->state = State::Finished;
        Warp& warp = block.warps[me->thread.warp];
        warp.finished |= 1u << me->thread.lane;
        block.finished += 1;
        if (block.at_barrier > 0 && block.at_barrier + block.finished == block.count) {
            open_barrier();
        }
        Fiber* next = block.head;
        if (next != nullptr && next->state == State::New) {
            block.head = next->next;
            next->state = State::Ready;
            next->stack = me->stack;
            thread = &next->thread;
            continue;
        }
        block.stacks.free.push_back(me->stack);
        give_up(&unused);
    }
}

void describe(const Fiber& fiber, std::string& text) {
    char line[256];
    const dim3& at = fiber.thread.thread_index;
    snprintf(line, sizeof line, "thread (%u, %u, %u)", at.x, at.y, at.z);
    text += line;
    if (fiber.state == State::AtBarrier) {
        snprintf(line, sizeof line, " waits at the barrier %s:%d", fiber.file, fiber.line);
    } else if (fiber.state == State::InCollective) {
        snprintf(line, sizeof line, " waits for lanes %#x at %s:%d", fiber.mask, fiber.file,
                 fiber.line);
    } else {
        snprintf(line, sizeof line, " is neither waiting nor finished");
    }
    text += line;
}

// Why nothing can go on although threads are left.
void explain_deadlock() {
    block.failed = true;
    block.error = "no thread can go on: ";
    unsigned said = 0;
    const char* file = nullptr;
    int line = 0;
    for (const Fiber& fiber : block.fibers) {
        if (fiber.state == State::Finished) continue;
        if (file == fiber.file && line == fiber.line) continue;
        file = fiber.file;
        line = fiber.line;
        if (said++ == 4) break;
        if (said > 1) block.error += "; ";
        describe(fiber, block.error);
    }
    char more[64];
    snprintf(more, sizeof more, "; %u of %u threads have returned", block.finished, block.count);
    block.error += more;
}

// Two lanes of a warp that meet in a collective.
void must_agree(const Fiber& one, const Fiber& other) {
    if (other.mask == one.mask && other.line == one.line && other.file == one.file &&
        other.bytes == one.bytes) {
        return;
    }
    fail("%s:%d (mask %#x, %zu bytes) meets %s:%d (mask %#x, %zu bytes) in one warp", one.file,
         one.line, one.mask, one.bytes, other.file, other.line, other.mask, other.bytes);
}

}  // namespace

void fail(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const dim3& at = thread->thread_index;
    char where[96];
    snprintf(where, sizeof where, " (thread (%u, %u, %u))", at.x, at.y, at.z);
    block.failed = true;
    block.error = std::string(text) + where;
    // The other threads of the block are forgotten with their stacks.
    void* unused;
    umaserve_switch(&unused, block.scheduler);
    abort();  // not reached: nothing goes on with a failed block
}

int sync_threads_count(bool predicate, const char* file, int line) {
    Fiber* me = current();
    if (block.at_barrier > 0 && (line != block.barrier_line || file != block.barrier_file)) {
        fail("threads of a block are at different barriers: %s:%d and %s:%d", block.barrier_file,
             block.barrier_line, file, line);
    }
    block.barrier_file = file;
    block.barrier_line = line;
    block.at_barrier += 1;
    block.barrier_sum += predicate;
    me->state = State::AtBarrier;
    me->file = file;
    me->line = line;
    if (block.at_barrier + block.finished == block.count) open_barrier();
    give_up(&me->context);
    return block.last_sum;
}

void sync_threads(const char* file, int line) { sync_threads_count(false, file, line); }

const void* deposit(unsigned mask, const void* data, size_t bytes, const char* file, int line) {
    Fiber* me = current();
    Warp& warp = block.warps[me->thread.warp];
    const unsigned bit = 1u << me->thread.lane;
    if (!(mask & bit)) {
        fail("%s:%d: lane %u is not in its own mask %#x", file, line, me->thread.lane, mask);
    }
    mask &= warp.lanes;
    if (mask & warp.finished) {
        fail("%s:%d: lanes %#x of the mask %#x have returned", file, line, mask & warp.finished,
             mask);
    }
    if (me->held >= 0) warp.deposits[me->held].readers &= ~bit;
    me->held = -1;
    Fiber* lanes = &block.fibers[me->thread.warp * 32];
    me->file = file;
    me->line = line;
    me->mask = mask;
    me->brought = data;
    me->bytes = bytes;
    // One here, so that what can never complete is told as what it is; all when it completes.
    if (const unsigned others = mask & warp.waiting) must_agree(*me, lanes[__builtin_ctz(others)]);
    warp.waiting |= bit;
    me->state = State::InCollective;
    if ((warp.waiting & mask) == mask) {
        for (unsigned others = mask; others != 0; others &= others - 1) {
            must_agree(*me, lanes[__builtin_ctz(others)]);
        }
        size_t place = 0;
        while (place < warp.deposits.size() && warp.deposits[place].readers != 0) ++place;
        if (place == warp.deposits.size()) warp.deposits.emplace_back();
        Deposits& deposits = warp.deposits[place];
        deposits.readers = mask;
        if (deposits.data.size() < 32 * bytes) deposits.data.resize(32 * bytes);
        if (mask != 0xffffffffu) memset(deposits.data.data(), 0xff, 32 * bytes);
        warp.waiting &= ~mask;
        for (unsigned others = mask; others != 0; others &= others - 1) {
            Fiber& other = lanes[__builtin_ctz(others)];
            memcpy(deposits.data.data() + __builtin_ctz(others) * bytes, other.brought, bytes);
            other.held = int(place);
            other.state = State::Ready;
            if (&other != me) block.push(&other);
        }
        // This lane is the last: it need not wait.
    } else {
        give_up(&me->context);
    }
    return warp.deposits[me->held].data.data();
}

unsigned ballot(unsigned mask, bool predicate, const char* file, int line) {
    const unsigned char mine = predicate;
    const unsigned char* all =
        static_cast<const unsigned char*>(deposit(mask, &mine, 1, file, line));
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= unsigned(all[lane] == 1) << lane;
    return bits & mask;
}

// ------------------------------------------------------------------------------------ launching

namespace {

struct Kernel {
    Entry entry;
    size_t params_bytes;
    unsigned max_threads;
};

// Filled before main() by the registrations; read only afterwards.
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

constexpr size_t GUARD = 4096;
constexpr unsigned char GUARD_BYTE = 0xa5;

// The order in which the threads of a block run: 0 ascending, 1 descending, else warps shuffled and
// every other one of them backwards.
void arrange(std::vector<unsigned>& order, unsigned count, unsigned seed) {
    order.resize(count);
    for (unsigned i = 0; i < count; ++i) order[i] = seed == 1 ? count - 1 - i : i;
    if (seed <= 1) return;
    uint64_t random = seed * 0x9e3779b97f4a7c15u;
    for (unsigned i = count; i > 1; --i) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const unsigned j = unsigned((random >> 33) % i);
        const unsigned other = order[j];
        order[j] = order[i - 1];
        order[i - 1] = other;
    }
}

bool run_block(const Kernel& kernel, const void* params, unsigned threads, size_t shared_bytes) {
    const unsigned lanes_of_last = threads % 32;
    block.entry = kernel.entry;
    block.params = params;
    block.count = threads;
    block.at_barrier = block.finished = 0;
    block.barrier_sum = block.last_sum = 0;
    block.head = block.tail = nullptr;
    block.failed = false;
    block.stacks.reset();
    block.warps.resize((threads + 31) / 32);
    for (size_t i = 0; i < block.warps.size(); ++i) {
        Warp& warp = block.warps[i];
        const bool partial = i + 1 == block.warps.size() && lanes_of_last != 0;
        warp.lanes = partial ? (1u << lanes_of_last) - 1 : 0xffffffffu;
        warp.waiting = warp.finished = 0;
        for (Deposits& deposits : warp.deposits) deposits.readers = 0;
    }
    unsigned char* shared = block.shared.data() + GUARD;
    shared += -reinterpret_cast<uintptr_t>(shared) & 127;
    // Not a number, in any of the types that kernels keep there.
    memset(shared, 0xff, shared_bytes);
    grid.shared = shared;
    grid.shared_bytes = shared_bytes;
    const dim3 size = grid.block;
    for (unsigned rank = 0; rank < threads; ++rank) {
        Fiber& fiber = block.fibers[rank];
        fiber.thread.thread_index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
        fiber.thread.rank = rank;
        fiber.thread.warp = rank / 32;
        fiber.thread.lane = rank % 32;
        fiber.state = State::New;
        fiber.held = -1;
        fiber.file = nullptr;
        fiber.line = 0;
    }
    for (unsigned rank : block.order) block.push(&block.fibers[rank]);
    give_up(&block.scheduler);
    thread = nullptr;
    if (!block.failed && block.finished != threads) explain_deadlock();
    if (!block.failed) {
        const unsigned char* zones[2] = {shared - GUARD, shared + shared_bytes};
        for (const unsigned char* zone : zones) {
            if (zone[0] != GUARD_BYTE || memcmp(zone, zone + 1, GUARD - 1) != 0) {
                block.failed = true;
                block.error = "wrote outside its " + std::to_string(shared_bytes) +
                              " bytes of shared memory";
                // For the blocks that follow.
                block.shared.assign(block.shared.size(), GUARD_BYTE);
                break;
            }
        }
    }
    return !block.failed;
}

}  // namespace

Registration::Registration(const char* name, Entry entry, size_t params_bytes,
                           unsigned max_threads) {
    kernels()[name] = Kernel{entry, params_bytes, max_threads};
}

}  // namespace host

// ------------------------------------------------------------------------------ for the caller

extern "C" {

// Name of kernel number `index` in alphabetical order, or null.
const char* umaserve_host_kernel(size_t index) {
    for (const auto& entry : host::kernels()) {
        if (index-- == 0) return entry.first.c_str();
    }
    return nullptr;
}

// Runs blocks [first, end) of a launch on this thread. 0, or 1 with the reason in `error`, a C
// string of at most `error_bytes` bytes.
int umaserve_host_launch(const char* name, const uint32_t grid[3], const uint32_t block[3],
                         size_t shared_bytes, const void* params, size_t params_bytes,
                         uint64_t first, uint64_t end, uint32_t order, char* error,
                         size_t error_bytes) {
    using namespace host;
    const auto found = kernels().find(name);
    if (found == kernels().end()) {
        snprintf(error, error_bytes, "there is no kernel of this name");
        return 1;
    }
    const Kernel& kernel = found->second;
    const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (params_bytes != kernel.params_bytes) {
        snprintf(error, error_bytes, "takes %zu bytes of parameters, not %zu", kernel.params_bytes,
                 params_bytes);
        return 1;
    }
    if (threads == 0 || threads > kernel.max_threads) {
        snprintf(error, error_bytes, "blocks of %llu threads; it may be 1 to %u",
                 static_cast<unsigned long long>(threads), kernel.max_threads);
        return 1;
    }
    Block& machine = host::block;
    if (!machine.stacks.make()) {
        snprintf(error, error_bytes, "no memory for the stacks of its threads");
        return 1;
    }
    machine.fibers.resize(MAX_THREADS);
    arrange(machine.order, unsigned(threads), order);
    machine.shared.assign(shared_bytes + 2 * GUARD + 128, GUARD_BYTE);
    host::grid.grid = {grid[0], grid[1], grid[2]};
    host::grid.block = {block[0], block[1], block[2]};
    for (uint64_t at = first; at < end; ++at) {
        host::grid.block_index = {uint32_t(at % grid[0]), uint32_t(at / grid[0] % grid[1]),
                                  uint32_t(at / grid[0] / grid[1])};
        if (!run_block(kernel, params, unsigned(threads), shared_bytes)) {
            const dim3& index = host::grid.block_index;
            snprintf(error, error_bytes, "block (%u, %u, %u): %s", index.x, index.y, index.z,
                     machine.error.c_str());
            return 1;
        }
    }
    return 0;
}

}  // extern "C"
