/** Where the server is: below whatever address this page came from. */

const base = (): URL => new URL('.', location.href)

export function httpUrl(path: string): string {
  const url = new URL(path, base())
  url.hash = ''
  return url.href
}

export function socketUrl(token: string): string {
  const url = new URL('ws', base())
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:'
  url.hash = ''
  // A browser cannot set headers on a WebSocket.
  if (token) url.searchParams.set('token', token)
  return url.href
}

const KEY = 'umaserve.token'

/** The token of the address's fragment, taken out of the address bar and the history; else the one
 *  of this tab. */
export function takeToken(): string {
  const fragment = new URLSearchParams(location.hash.replace(/^#/, ''))
  const given = fragment.get('token')
  if (given) {
    fragment.delete('token')
    const rest = fragment.toString()
    history.replaceState(null, '', location.pathname + location.search + (rest ? `#${rest}` : ''))
    keepToken(given)
    return given
  }
  try {
    return sessionStorage.getItem(KEY) ?? ''
  } catch {
    return ''
  }
}

export function keepToken(token: string): void {
  try {
    sessionStorage.setItem(KEY, token)
  } catch {
    // Without storage the token is asked for again after a reload.
  }
}

export function authorized(token: string): RequestInit {
  return token ? { headers: { Authorization: `Bearer ${token}` }, cache: 'no-store' } : { cache: 'no-store' }
}
