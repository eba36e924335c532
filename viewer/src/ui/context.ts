/** The three objects of the page, made once in main.tsx. */

import { createContext } from 'preact'
import { useContext } from 'preact/hooks'
import { signal } from '@preact/signals'
import type { Pointer } from '../scene/pointer'
import type { Scene } from '../scene/scene'
import type { Workbench } from '../workbench'

export interface Page {
  bench: Workbench
  scene: Scene
  pointer: Pointer
}

export const PageContext = createContext<Page | null>(null)

export function usePage(): Page {
  const page = useContext(PageContext)
  if (!page) throw new Error('used outside of the page')
  return page
}

/** Which dialog is open. */
export const dialog = signal<'none' | 'open' | 'download' | 'help'>('none')
/** Whether the panel is shown where it does not fit beside the picture. */
export const drawer = signal(false)
