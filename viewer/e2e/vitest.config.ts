import { defineConfig } from 'vitest/config'

export default defineConfig({
  cacheDir: '../node_modules/.vite-e2e',
  test: {
    root: new URL('.', import.meta.url).pathname,
    include: ['*.test.ts'],
    testTimeout: 180_000,
    hookTimeout: 120_000,
    // The tests are one visit, step by step.
    fileParallelism: false,
    sequence: { concurrent: false },
    bail: 1,
  },
})
