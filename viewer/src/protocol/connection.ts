/** The socket under an `Exchange`: connects, identifies the session, comes back after a loss. */

import { authorized, httpUrl, socketUrl } from './address'
import { Backoff } from './backoff'
import type { Exchange, Heard } from './exchange'

export type Status =
  | { state: 'connecting' }
  | { state: 'online' }
  /** Lost or not reached; the next attempt is at `retryAt` (ms since the epoch). */
  | { state: 'waiting'; reason: string; retryAt: number }
  /** The token is missing or wrong. */
  | { state: 'locked'; reason: string }
  /** Another page has this session now. */
  | { state: 'taken' }
  /** Ended by the user. */
  | { state: 'ended' }

/** Where the identity of the session survives a reload of the tab. */
export interface Memory {
  get(): string
  set(id: string): void
}

export interface Listener {
  status(status: Status): void
  /** The session is known on both sides; `resumed` says whether the server still had it. */
  ready(heard: Extract<Heard, { what: 'state' }> | null): void
  heard(heard: Heard): void
}

/** A server that knows no identities says nothing to the first message. */
const IDENTITY_TIMEOUT_MS = 4000

export class Connection {
  private socket: WebSocket | undefined
  private readonly backoff = new Backoff()
  private timer: ReturnType<typeof setTimeout> | undefined
  private generation = 0
  private ackDue = false

  constructor(
    private readonly exchange: Exchange,
    private readonly memory: Memory,
    private readonly listener: Listener,
    public token: string,
  ) {
    exchange.sessionId = memory.get()
    exchange.send = (bytes) => {
      // Lost messages are found out when the session is resumed.
      if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(bytes as Uint8Array<ArrayBuffer>)
    }
    addEventListener('online', () => this.hurry())
  }

  /** Connects now, whatever was planned. */
  connect(): void {
    clearTimeout(this.timer)
    this.drop()
    const mine = ++this.generation
    this.listener.status({ state: 'connecting' })
    let socket: WebSocket
    try {
      socket = new WebSocket(socketUrl(this.token))
    } catch (error) {
      this.retry(error instanceof Error ? error.message : String(error))
      return
    }
    this.socket = socket
    socket.binaryType = 'arraybuffer'
    let opened = false
    let identified = false
    let patience: ReturnType<typeof setTimeout> | undefined
    socket.onopen = () => {
      opened = true
      this.exchange.attach()
      patience = setTimeout(() => {
        if (mine === this.generation && !identified) {
          identified = true
          this.exchange.forget()
          this.online(null)
        }
      }, IDENTITY_TIMEOUT_MS)
    }
    socket.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
      if (mine !== this.generation || typeof data === 'string') return
      let heard: Heard | null
      try {
        heard = this.exchange.hear(new Uint8Array(data))
      } catch (error) {
        console.warn('a message of the server was not understood', error)
        return
      }
      this.acknowledge()
      if (!heard) return
      if (heard.what === 'state') {
        clearTimeout(patience)
        identified = true
        this.memory.set(heard.state.sessionId)
        this.online(heard)
      } else {
        this.listener.heard(heard)
      }
    }
    socket.onclose = ({ code }) => {
      clearTimeout(patience)
      if (mine !== this.generation) return
      this.socket = undefined
      if (code === 4001) this.listener.status({ state: 'taken' })
      else if (code === 1000) {
        this.memory.set('')
        this.listener.status({ state: 'ended' })
      } else if (opened) this.retry(CLOSED[code] ?? 'The connection was lost.')
      else void this.diagnose(mine)
    }
  }

  /** Ends the session on the server; nothing comes back by itself after that. */
  end(): void {
    this.exchange.end()
  }

  /** Tries at once instead of waiting. */
  hurry(): void {
    if (this.timer !== undefined && !this.socket) this.connect()
  }

  private online(heard: Extract<Heard, { what: 'state' }> | null): void {
    this.backoff.reset()
    this.listener.status({ state: 'online' })
    this.listener.ready(heard)
  }

  /** One acknowledgement for all messages that arrive together; sent before the next picture is
   *  drawn, so that a hidden tab does not stop the simulation. */
  private acknowledge(): void {
    if (this.ackDue) return
    this.ackDue = true
    queueMicrotask(() => {
      this.ackDue = false
      this.exchange.acknowledge()
    })
  }

  /** Why there was no socket: a browser does not tell, a request does. */
  private async diagnose(mine: number): Promise<void> {
    let reason = 'The server cannot be reached.'
    try {
      const answer = await fetch(httpUrl('serve/health'), {
        ...authorized(this.token),
        signal: AbortSignal.timeout(5000),
      })
      if (mine !== this.generation) return
      if (answer.status === 401) {
        this.listener.status({
          state: 'locked',
          reason: this.token ? 'This token is not accepted.' : 'This server asks for a token.',
        })
        return
      }
      if (answer.status === 429) reason = 'Too many attempts; the server asks to wait.'
      else if (answer.status === 403) reason = 'The server does not accept pages from this address.'
      else if (answer.ok) reason = 'The server has no free session, or is starting.'
      else reason = `The server answered ${answer.status}.`
    } catch {
      // Not reachable; said already.
    }
    if (mine === this.generation) this.retry(reason)
  }

  private retry(reason: string): void {
    const wait = this.backoff.next()
    this.listener.status({ state: 'waiting', reason, retryAt: Date.now() + wait })
    this.timer = setTimeout(() => {
      this.timer = undefined
      this.connect()
    }, wait)
  }

  private drop(): void {
    const old = this.socket
    this.socket = undefined
    if (old) {
      old.onopen = old.onmessage = old.onclose = null
      old.close()
    }
  }
}

const CLOSED: Record<number, string> = {
  1001: 'The server has stopped.',
  1008: 'The server closed an idle connection.',
  1009: 'The server refused a message as too large.',
  1011: 'The simulation engine has stopped.',
  1012: 'The server is restarting.',
  1013: 'The server ended the session: it is full, or this page was too slow.',
}
