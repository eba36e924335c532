/** The controls that the panels are made of. */

import type { Signal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { Icon, type IconName } from './icons'

/** A number with its unit; commits on Enter, on leaving and with the arrow keys. */
export function NumberField(props: {
  label: string
  unit?: string
  value: number
  min: number
  max: number
  /** What the arrow keys add; `factor` multiplies instead. */
  step?: number
  factor?: number
  digits?: number
  integer?: boolean
  hint?: string
  disabled?: boolean
  /** Shown instead of 0, which stands for "not given". */
  zero?: string
  onChange: (value: number) => void
}) {
  const show = (value: number): string => (value === 0 && props.zero ? props.zero : String(+value.toFixed(props.digits ?? 6)))
  const parse = (entered: string): number => (props.zero && (entered.trim() === '' || entered.trim() === props.zero) ? 0 : Number(entered.trim().replace(',', '.').replace('−', '-')))
  const [text, setText] = useState(show(props.value))
  const [bad, setBad] = useState(false)
  const focused = useRef(false)
  useEffect(() => {
    if (!focused.current) setText(show(props.value))
  }, [props.value])
  const commit = (): void => {
    const value = parse(text)
    const valid =
      (text.trim() !== '' || props.zero !== undefined) && Number.isFinite(value) && value >= props.min && value <= props.max && (!props.integer || Number.isInteger(value))
    setBad(false)
    if (valid && value !== props.value) props.onChange(value)
    setText(show(valid ? value : props.value))
  }
  const nudge = (sign: number): void => {
    const next = props.factor ? props.value * props.factor ** sign : props.value + sign * (props.step ?? 1)
    const value = Math.min(props.max, Math.max(props.min, +next.toPrecision(6)))
    if (value !== props.value) props.onChange(value)
    setText(show(value))
  }
  const id = `field-${props.label.replace(/\W+/g, '-').toLowerCase()}`
  return (
    <div class="field" title={props.hint}>
      <label for={id}>{props.label}</label>
      <span class={`number${bad ? ' bad' : ''}`}>
        <input
          id={id}
          type="text"
          inputMode="decimal"
          autocomplete="off"
          spellcheck={false}
          value={text}
          disabled={props.disabled}
          aria-invalid={bad}
          onFocus={(e) => {
            focused.current = true
            e.currentTarget.select()
          }}
          onInput={(e) => {
            setText(e.currentTarget.value)
            const value = parse(e.currentTarget.value)
            setBad(!(Number.isFinite(value) && value >= props.min && value <= props.max && (!props.integer || Number.isInteger(value))))
          }}
          onBlur={() => {
            focused.current = false
            commit()
          }}
          onKeyDown={(e) => {
            if (e.key === 'Enter') e.currentTarget.blur()
            else if (e.key === 'Escape') {
              setText(show(props.value))
              setBad(false)
              e.currentTarget.blur()
            } else if (e.key === 'ArrowUp' || e.key === 'ArrowDown') {
              e.preventDefault()
              nudge(e.key === 'ArrowUp' ? 1 : -1)
            }
            e.stopPropagation()
          }}
        />
        {props.unit && <span class="unit">{props.unit}</span>}
      </span>
    </div>
  )
}

export function Select<T extends string>(props: {
  label: string
  value: T
  options: readonly (readonly [T, string])[]
  hint?: string
  onChange: (value: T) => void
}) {
  const id = `field-${props.label.replace(/\W+/g, '-').toLowerCase()}`
  return (
    <div class="field" title={props.hint}>
      <label for={id}>{props.label}</label>
      <select id={id} value={props.value} onChange={(e) => props.onChange(e.currentTarget.value as T)}>
        {props.options.map(([value, text]) => (
          <option value={value} selected={value === props.value}>
            {text}
          </option>
        ))}
      </select>
    </div>
  )
}

export function Switch(props: { label: string; value: boolean; hint?: string; disabled?: boolean; onChange: (value: boolean) => void }) {
  return (
    <label class="switch" title={props.hint}>
      <span>{props.label}</span>
      <input
        type="checkbox"
        role="switch"
        checked={props.value}
        disabled={props.disabled}
        onChange={(e) => props.onChange(e.currentTarget.checked)}
      />
    </label>
  )
}

/** A switch of a setting. */
export function Setting({ label, of, hint }: { label: string; of: Signal<boolean>; hint?: string }) {
  return <Switch label={label} value={of.value} {...(hint ? { hint } : {})} onChange={(value) => (of.value = value)} />
}

export function Segmented<T extends string>(props: {
  label: string
  value: T
  options: readonly (readonly [T, string])[]
  onChange: (value: T) => void
}) {
  return (
    <div class="segmented" role="radiogroup" aria-label={props.label}>
      {props.options.map(([value, text]) => (
        <button type="button" role="radio" aria-checked={value === props.value} onClick={() => props.onChange(value)}>
          {text}
        </button>
      ))}
    </div>
  )
}

export function IconButton(props: {
  icon: IconName
  label: string
  active?: boolean
  disabled?: boolean
  onClick: () => void
  class?: string
}) {
  return (
    <button
      type="button"
      class={`icon-button ${props.class ?? ''}`}
      title={props.label}
      aria-label={props.label}
      aria-pressed={props.active}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      <Icon name={props.icon} />
    </button>
  )
}

/** Whether something is open, remembered in this browser. */
function useRemembered(name: string, initially: boolean): [boolean, () => void] {
  const key = `umaserve.section.${name}`
  const [open, setOpen] = useState(() => {
    try {
      return (localStorage.getItem(key) ?? String(initially)) === 'true'
    } catch {
      return initially
    }
  })
  const toggle = (): void => {
    setOpen(!open)
    try {
      localStorage.setItem(key, String(!open))
    } catch {
      // Not remembered, then.
    }
  }
  return [open, toggle]
}

/** A part of the panel that folds. */
export function Section(props: { title: string; name: string; open?: boolean; extra?: ComponentChildren; children: ComponentChildren }) {
  const [open, toggle] = useRemembered(props.name, props.open ?? true)
  return (
    <section class={`section${open ? ' open' : ''}`}>
      <header>
        <button type="button" class="section-title" aria-expanded={open} onClick={toggle}>
          <Icon name="chevron" size={14} />
          <h2>{props.title}</h2>
        </button>
        {open && props.extra}
      </header>
      {open && <div class="section-body">{props.children}</div>}
    </section>
  )
}

/** What is needed seldom, within a section. */
export function Fold(props: { title: string; name: string; children: ComponentChildren }) {
  const [open, toggle] = useRemembered(props.name, false)
  return (
    <div class={`fold${open ? ' open' : ''}`}>
      <button type="button" aria-expanded={open} onClick={toggle}>
        <Icon name="chevron" size={12} />
        {props.title}
      </button>
      {open && props.children}
    </div>
  )
}

/** A dialog over the page; Escape and a click beside it close it. */
export function Dialog(props: { title: string; wide?: boolean; onClose: () => void; children: ComponentChildren }) {
  const ref = useRef<HTMLDialogElement>(null)
  useEffect(() => {
    ref.current?.showModal()
  }, [])
  return (
    <dialog
      ref={ref}
      class={props.wide ? 'wide' : ''}
      onClose={props.onClose}
      onClick={(e) => {
        if (e.target === ref.current) props.onClose()
      }}
    >
      <div class="dialog-body">
        <header>
          <h1>{props.title}</h1>
          <IconButton icon="close" label="Close" onClick={props.onClose} />
        </header>
        {props.children}
      </div>
    </dialog>
  )
}
