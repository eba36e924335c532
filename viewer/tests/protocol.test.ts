import { create, fromBinary, toBinary, type MessageInitShape } from '@bufbuild/protobuf'
import { describe, expect, it } from 'vitest'
import { ClientActionSchema, ServerResultSchema, type ClientAction } from '../src/generated/session_pb'
import { Backoff } from '../src/protocol/backoff'
import { Exchange, SimType } from '../src/protocol/exchange'
import { inWords } from '../src/protocol/notices'

function conversation(): { x: Exchange; said: ClientAction[]; answer: (m: MessageInitShape<typeof ServerResultSchema>) => ReturnType<Exchange['hear']> } {
  const x = new Exchange()
  const said: ClientAction[] = []
  x.send = (bytes) => said.push(fromBinary(ClientActionSchema, bytes))
  return { x, said, answer: (m) => x.hear(toBinary(ServerResultSchema, create(ServerResultSchema, m))) }
}

const edit = { fullUpdateFlag: { case: 'fullUpdate', value: false } } as const
const frame = (rest = {}) => ({ payload: { case: 'frame' as const, value: { positions: [1, 2, 3], energy: -1, ...rest } } })
const notice = (message: string, simulationStopped?: boolean) => ({
  payload: { case: 'notice' as const, value: { message, ...(simulationStopped ? { simulationStopped } : {}) } },
})

describe('exchange', () => {
  it('counts, acknowledges and tells answers from simulation', () => {
    const { x, said, answer } = conversation()
    x.attach()
    expect(said[0]!.attach?.sessionId).toBe('')
    expect(x.edit(edit)).toBe(1)
    expect(x.edit(edit)).toBe(2)
    expect(said.map((m) => m.seq)).toEqual([1n, 2n, 3n])
    expect(x.editsUnderWay).toBe(2)
    const idle = answer({ seq: 1n, userInteractionCount: 1n, ...frame() })
    expect(idle).toMatchObject({ what: 'frame', simulated: false, current: false, edits: 1 })
    expect(x.editsUnderWay).toBe(1)
    x.acknowledge()
    expect(said.at(-1)!.ack).toBe(1n)
    expect(said.at(-1)!.seq).toBe(3n)
    expect(answer({ seq: 2n, userInteractionCount: 2n, ...frame() })).toMatchObject({ current: true })
    x.start(SimType.MD, { temperature: 300 })
    expect(x.run).toBe('starting')
    expect(answer({ seq: 3n, userInteractionCount: 2n, simStep: 5n, ...frame({ timeFs: 5 }) })).toMatchObject({ simulated: true, step: 5 })
    expect(x.run).toBe('running')
    x.stop()
    expect(x.run).toBe('stopping')
    answer({ seq: 4n, simStep: 6n, ...frame({ timeFs: 6 }) })
    expect(x.run).toBe('stopping')
    answer({ seq: 5n, ...notice('SIMULATION_STOPPED', true) })
    expect(x.run).toBe('idle')
  })
  it('does not take the end of the last run for the end of the next', () => {
    const { x, answer } = conversation()
    x.start(SimType.RELAX, {})
    x.stop()
    x.start(SimType.MD, {})
    answer({ seq: 1n, ...notice('SIMULATION_STOPPED', true) })
    expect(x.run).toBe('starting')
    answer({ seq: 2n, ...notice('PROTO_VIOLATION: timestep_fs = 0', true) })
    expect(x.run).toBe('idle')
  })
  it('never acknowledges less than before', () => {
    const { x, said, answer } = conversation()
    answer({ seq: 7n, ...frame() })
    answer({ seq: 7n, ...notice('WAITING_FOR_ACK') })
    answer({ seq: 3n, ...frame() })
    x.acknowledge()
    expect(said.at(-1)!.ack).toBe(7n)
  })
  it('counts a refused edit as answered', () => {
    const { x, answer } = conversation()
    x.edit(edit)
    answer({ seq: 1n, userInteractionCount: 1n, ...notice('PROTO_VIOLATION: natoms = 1e9') })
    expect(x.editsUnderWay).toBe(0)
  })
  it('resumes by the name of the session and finds lost messages', () => {
    const { x, said, answer } = conversation()
    x.attach()
    const state = (resumed: boolean, running = false) => ({
      payload: { case: 'sessionState' as const, value: { sessionId: 'abc', resumed, running, atomicNumbers: [1] } },
    })
    expect(answer({ seq: 1n, clientSeq: 1n, ...state(false) })).toMatchObject({ what: 'state', lost: false })
    expect(x.sessionId).toBe('abc')
    x.edit(edit)
    x.start(SimType.MD, {})
    x.attach()
    expect(said.at(-1)!.attach?.sessionId).toBe('abc')
    expect(said.at(-1)!.ack).toBe(1n)
    // The server has seen neither the edit nor the start.
    expect(answer({ seq: 2n, clientSeq: 1n, userInteractionCount: 0n, ...state(true) })).toMatchObject({ lost: true })
    expect(x.run).toBe('idle')
    x.attach()
    expect(answer({ seq: 9n, clientSeq: 5n, userInteractionCount: 1n, simStep: 40n, ...state(true, true) })).toMatchObject({ lost: false, step: 40 })
    expect(x.run).toBe('running')
  })
  it('goes on from the counters of the server after a reload', () => {
    const { x, said, answer } = conversation()
    x.sessionId = 'abc'
    x.attach()
    answer({
      seq: 90n,
      clientSeq: 50n,
      userInteractionCount: 12n,
      payload: { case: 'sessionState', value: { sessionId: 'abc', resumed: true, atomicNumbers: [1] } },
    })
    expect(x.edit(edit)).toBe(13)
    expect(said.at(-1)!.seq).toBe(51n)
    expect(said.at(-1)!.ack).toBe(90n)
  })
  it('throws at bytes that are no message', () => {
    expect(() => new Exchange().hear(Uint8Array.of(0xff, 0xff, 0xff))).toThrow()
  })
})

describe('notices', () => {
  it.each([
    'PROTO_VIOLATION: full_update flag must be set',
    'IDLE_WAITING_FOR_GEOMETRY',
    'COMPUTE_ERROR: too close',
    'STRUCTURE_CHANGED',
    "CALCULATOR_NOT_SUPPORTED: UMA_ONLY (requested: 'lj')",
    'SIMULATION_STOPPED',
    'WAITING_FOR_ACK',
    'ACK_CLEARED',
    'RATE_LIMITED: 200 messages in a second',
    'SERVER_DRAINING: maintenance',
    'RECORDING_FAILED: disk full',
    'RECORDING_RESUMED: 3 frames are missing',
  ])('%s is said in words', (message) => {
    const words = inWords(message)
    expect(words.title).not.toBe('Message from the server')
    expect(words.title + words.detail).not.toMatch(/[A-Z]+_[A-Z]+_?[A-Z]*:/)
    const detail = message.split(': ')[1]
    if (detail && !message.startsWith('SIM')) expect(words.detail.toLowerCase()).toContain(detail.slice(1).toLowerCase())
  })
  it('of later servers are shown as they are', () => {
    expect(inWords('SOMETHING_NEW: x').detail).toBe('SOMETHING_NEW: x')
  })
})

describe('back-off', () => {
  it('grows to its bound and starts anew', () => {
    const b = new Backoff(500, 5000, () => 0.5)
    const waits = Array.from({ length: 8 }, () => b.next())
    expect(waits[0]).toBe(500)
    for (let i = 1; i < waits.length; i++) expect(waits[i]!).toBeGreaterThanOrEqual(waits[i - 1]!)
    expect(waits.at(-1)).toBe(5000)
    b.reset()
    expect(b.next()).toBe(500)
  })
})
