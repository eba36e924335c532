/** A server that knows nothing of chemistry: hands out the built page and sends frames of shaking atoms
 *  at a fixed rate, as the real one would. For measuring the page alone. */

import { createServer } from 'node:http'
import { existsSync, readFileSync } from 'node:fs'
import { extname, join } from 'node:path'
import { create, fromBinary, toBinary, type MessageInitShape } from '@bufbuild/protobuf'
import { WebSocketServer, type WebSocket } from 'ws'
import { ClientActionSchema, ServerResultSchema } from '../src/generated/session_pb'

const DIST = new URL('../dist/', import.meta.url).pathname
const TYPES: Record<string, string> = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' }

export interface ShakingServer {
  url: string
  framesSent: () => number
  stop: () => void
}

export async function startShakingServer(framesPerSecond: number): Promise<ShakingServer> {
  if (!existsSync(join(DIST, 'index.html'))) throw new Error('no page: npm run build')
  const http = createServer((request, response) => {
    const path = new URL(request.url ?? '/', 'http://x').pathname
    if (path === '/serve/health') {
      response.setHeader('Content-Type', 'application/json')
      response.end(JSON.stringify({ version: 'bench', model: 'none', task: 'omol', tasks: ['omol'], device: 'cpu', workers: 1, max_atoms: 100_000 }))
      return
    }
    const file = join(DIST, path === '/' ? 'index.html' : path)
    if (!file.startsWith(DIST) || !existsSync(file)) {
      response.statusCode = 404
      response.end()
      return
    }
    response.setHeader('Content-Type', TYPES[extname(file)] ?? 'application/octet-stream')
    response.end(readFileSync(file))
  })
  let sent = 0
  const sockets = new WebSocketServer({ server: http, path: '/ws' })
  sockets.on('connection', (socket) => talk(socket, 1000 / framesPerSecond, () => sent++))
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve))
  const address = http.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  return {
    url: `http://127.0.0.1:${address.port}/`,
    framesSent: () => sent,
    stop: () => {
      for (const socket of sockets.clients) socket.terminate()
      http.close()
    },
  }
}

function talk(socket: WebSocket, interval: number, count: () => void): void {
  let seq = 0n
  let heard = 0n
  let edits = 0n
  let step = 0n
  let at: number[] = []
  let cell: number[] | undefined
  let timer: ReturnType<typeof setInterval> | undefined
  const say = (rest: MessageInitShape<typeof ServerResultSchema>): void => {
    const result = create(ServerResultSchema, { seq: ++seq, clientSeq: heard, userInteractionCount: edits, simStep: step, schemaVersion: 1, ...rest })
    socket.send(toBinary(ServerResultSchema, result))
  }
  const shaken = (size: number): number[] => at.map(() => size * (Math.random() - 0.5))
  socket.on('message', (data: Buffer) => {
    const action = fromBinary(ClientActionSchema, data)
    if (action.seq > heard) heard = action.seq
    if (action.userInteractionCount) edits = action.userInteractionCount
    if (action.attach) say({ payload: { case: 'sessionState', value: { sessionId: '0'.repeat(32), reconnectSeconds: 120 } } })
    const { payload } = action
    if (payload.case === 'userInteraction') {
      if (payload.value.positions && payload.value.fullUpdateFlag.value) at = payload.value.positions.coords
      if (payload.value.cell) cell = payload.value.cell.m
      say({ payload: { case: 'frame', value: { positions: at, velocities: shaken(0), forces: shaken(2), energy: -1, fmax: 1 } } })
    } else if (payload.case === 'start') {
      clearInterval(timer)
      timer = setInterval(() => {
        step++
        count()
        const positions = shaken(0.15).map((d, i) => at[i]! + d)
        say({
          payload: {
            case: 'frame',
            value: {
              positions,
              velocities: shaken(0.1),
              forces: shaken(4),
              ...(cell ? { cell: { m: cell } } : {}),
              energy: -1000 + Math.random(),
              kinetic: 10 + Math.random(),
              temperature: 300 + 20 * Math.random(),
              fmax: 2 + Math.random(),
              timeFs: Number(step) / 2,
            },
          },
        })
      }, interval)
    } else if (payload.case === 'stop') {
      clearInterval(timer)
      say({ payload: { case: 'notice', value: { message: 'SIMULATION_STOPPED', simulationStopped: true } } })
    }
  })
  socket.on('close', () => clearInterval(timer))
}
