/** Line icons on a grid of 20. */

const PATHS = {
  play: 'M6 4l10 6-10 6z',
  pause: 'M6 4.5h2.6v11H6zM11.4 4.5H14v11h-2.6z',
  step: 'M4.5 4.5l7.5 5.5-7.5 5.5zM13.5 4.5H16v11h-2.5z',
  edit: 'M4 3l11 5.5-4.8 1.6L8.4 15z',
  view: 'M2.5 10s2.8-5 7.5-5 7.5 5 7.5 5-2.8 5-7.5 5-7.5-5-7.5-5zM10 7.8a2.2 2.2 0 1 0 0 4.4 2.2 2.2 0 0 0 0-4.4',
  add: 'M10 4v12M4 10h12',
  erase: 'M5 6h10M8 6V4h4v2M6 6l.8 10h6.4L14 6M8.6 9v4.5M11.4 9v4.5',
  measure: 'M3 13.5L13.5 3 17 6.5 6.5 17zM6 10.5l1.5 1.5M8.2 8.3l2 2M10.5 6l1.5 1.5M12.6 3.9l0 0',
  undo: 'M7.5 4L4 7.5 7.5 11M4 7.5h8a4 4 0 0 1 0 8H8',
  redo: 'M12.5 4L16 7.5 12.5 11M16 7.5H8a4 4 0 0 0 0 8h4',
  frame: 'M4 7.5V4h3.5M12.5 4H16v3.5M16 12.5V16h-3.5M7.5 16H4v-3.5M10 8.2a1.8 1.8 0 1 0 0 3.6 1.8 1.8 0 0 0 0-3.6',
  open: 'M3.5 5.5h4l1.5 2h7.5v8h-13zM3.5 9h13',
  download: 'M10 3.5v8.5M6.5 9l3.5 3.5L13.5 9M4 15.5h12',
  sun: 'M10 6.7a3.3 3.3 0 1 0 0 6.6 3.3 3.3 0 0 0 0-6.6M10 2.5v1.8M10 15.7v1.8M2.5 10h1.8M15.7 10h1.8M4.7 4.7L6 6M14 14l1.3 1.3M4.7 15.3L6 14M14 6l1.3-1.3',
  moon: 'M15.5 11.5A6 6 0 0 1 8.5 4.5a6 6 0 1 0 7 7z',
  auto: 'M10 3.5a6.5 6.5 0 1 0 0 13zM10 3.5a6.5 6.5 0 0 1 0 13',
  help: 'M7.6 7.6A2.4 2.4 0 1 1 10 10.4v1.4M10 14.4v.4',
  close: 'M5 5l10 10M15 5L5 15',
  panel: 'M3.5 4.5h13v11h-13zM12 4.5v11',
  chevron: 'M6 8l4 4 4-4',
  live: 'M10 7.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5M5.4 5.4a6.5 6.5 0 0 0 0 9.2M14.6 5.4a6.5 6.5 0 0 1 0 9.2',
  check: 'M4.5 10.5l3.5 3.5 7.5-8',
  flask: 'M8 3.5h4M8.8 3.5v4.7L4.6 15a1 1 0 0 0 .9 1.5h9a1 1 0 0 0 .9-1.5l-4.2-6.8V3.5M6.6 12.5h6.8',
} as const

const FILLED = new Set<IconName>(['play', 'pause', 'step'])

export type IconName = keyof typeof PATHS

export function Icon({ name, size = 18 }: { name: IconName; size?: number }) {
  const filled = FILLED.has(name)
  return (
    <svg
      class="icon"
      width={size}
      height={size}
      viewBox="0 0 20 20"
      aria-hidden="true"
      fill={filled ? 'currentColor' : 'none'}
      stroke={filled ? 'none' : 'currentColor'}
      stroke-width="1.5"
      stroke-linecap="round"
      stroke-linejoin="round"
    >
      <path d={PATHS[name]} />
    </svg>
  )
}
