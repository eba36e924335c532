/** The conversation with the server, without sockets and clocks: counters, what is under way, what an
 *  answer means. One `Exchange` lives as long as the session does, across sockets. */

import { create, fromBinary, toBinary, type MessageInitShape } from '@bufbuild/protobuf'
import {
  ClientActionSchema,
  ServerResultSchema,
  type ServerResult_Frame,
  type ServerResult_SessionState,
  type SimulationParamsSchema,
  type UserInteractionSparseSchema,
  ClientAction_Start_SimType as SimType,
} from '../generated/session_pb'

export { SimType }
export type Parameters = MessageInitShape<typeof SimulationParamsSchema>
export type Edit = MessageInitShape<typeof UserInteractionSparseSchema>
export type Frame = ServerResult_Frame
export type State = ServerResult_SessionState

/** What a message of the server means. */
export type Heard =
  | {
      what: 'frame'
      frame: Frame
      /** Of a simulation, or the answer to an edit. */
      simulated: boolean
      step: number
      /** Edits contained in it. */
      edits: number
      /** All edits that were sent are in it. */
      current: boolean
    }
  | { what: 'notice'; message: string; stopped: boolean; edits: number }
  | {
      what: 'state'
      state: State
      step: number
      /** Edits of this page that the server has not seen: they are lost and must be sent again. */
      lost: boolean
    }

/** How the page runs: what it has asked for, and what the server has confirmed. */
export type Run = 'idle' | 'starting' | 'running' | 'stopping'

export class Exchange {
  /** Sends bytes if there is a socket; set by the connection. */
  send: (bytes: Uint8Array) => void = () => {}
  /** Names the session on the server; '' = none yet. */
  sessionId = ''
  run: Run = 'idle'

  private seq = 0n
  private heardSeq = 0n
  private lastActionSeq = 0n
  private edits = 0
  private answered = 0

  /** Edits sent but not yet contained in anything the server said. */
  get editsUnderWay(): number {
    return Math.max(0, this.edits - this.answered)
  }

  get editsSent(): number {
    return this.edits
  }

  /** The first message of a socket: names the session that is to go on, or asks for a new one. */
  attach(): void {
    this.say({ attach: { sessionId: this.sessionId }, ack: this.heardSeq })
  }

  /** A new session begins: the server counts from 1 again. */
  forget(): void {
    this.heardSeq = 0n
    this.answered = this.edits
    this.run = 'idle'
  }

  /** Sends an edit; returns its number, which frames echo. */
  edit(change: Edit): number {
    this.edits++
    this.lastActionSeq = this.say({ payload: { case: 'userInteraction', value: change } })
    return this.edits
  }

  start(type: SimType, parameters: Parameters): void {
    this.run = 'starting'
    this.lastActionSeq = this.say({
      payload: { case: 'start', value: { simulationType: type, simulationParams: parameters } },
    })
  }

  stop(): void {
    if (this.run !== 'idle') this.run = 'stopping'
    this.lastActionSeq = this.say({ payload: { case: 'stop', value: {} } })
  }

  setDetached(detached: boolean): void {
    this.say({ detached })
  }

  /** Ends the session for good. */
  end(): void {
    this.say({ endSession: true })
  }

  private say(rest: MessageInitShape<typeof ClientActionSchema>): bigint {
    this.seq++
    const action = create(ClientActionSchema, {
      seq: this.seq,
      ack: this.heardSeq,
      userInteractionCount: BigInt(this.edits),
      schemaVersion: 1,
      ...rest,
    })
    this.send(toBinary(ClientActionSchema, action))
    return this.seq
  }

  /** Acknowledges what has been heard. */
  acknowledge(): void {
    const action = create(ClientActionSchema, { seq: this.seq, ack: this.heardSeq, schemaVersion: 1 })
    this.send(toBinary(ClientActionSchema, action))
  }

  /** Takes a message of the server. Throws if the bytes are none. */
  hear(bytes: Uint8Array): Heard | null {
    const result = fromBinary(ServerResultSchema, bytes)
    if (result.seq > this.heardSeq) this.heardSeq = result.seq
    const edits = Number(result.userInteractionCount ?? 0n)
    const step = Number(result.simStep ?? 0n)
    switch (result.payload.case) {
      case 'frame': {
        const frame = result.payload.value
        this.answered = Math.max(this.answered, edits)
        // Only simulations have a time.
        const simulated = frame.timeFs !== undefined
        if (simulated && this.run === 'starting') this.run = 'running'
        return { what: 'frame', frame, simulated, step, edits, current: edits >= this.edits }
      }
      case 'notice': {
        const message = result.payload.value.message ?? ''
        const stopped = result.payload.value.simulationStopped ?? false
        // An answer to an edit: refused, incomplete or failed.
        if (!stopped) this.answered = Math.max(this.answered, edits)
        // A stop that was not asked for may cross a start; the one that was asked for ends it.
        if (stopped && (this.run !== 'starting' || message !== 'SIMULATION_STOPPED')) this.run = 'idle'
        return { what: 'notice', message, stopped, edits }
      }
      case 'sessionState': {
        const state = result.payload.value
        const lost =
          state.resumed && ((result.clientSeq ?? 0n) < this.lastActionSeq || edits < this.edits)
        this.sessionId = state.sessionId
        this.run = state.running ? 'running' : 'idle'
        if (state.resumed) {
          // Also after a reload, when this page starts from zero.
          if ((result.clientSeq ?? 0n) > this.seq) this.seq = result.clientSeq ?? 0n
          this.edits = Math.max(this.edits, edits)
        } else {
          this.heardSeq = result.seq
        }
        this.answered = this.edits
        return { what: 'state', state, step, lost }
      }
      default:
        return null
    }
  }
}
