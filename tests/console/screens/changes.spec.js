// What an operator can change: each by its screen, and each is in the audit afterwards.
import { test, expect, logIn, tabTo } from '../console_page.js';

const title = (page) => page.getByRole('heading', { level: 1 });
const outcome = (page) => page.locator('#job [role="status"], [data-live] [role="status"]').first();

async function expectDone(page) {
  await expect(page).toHaveURL(/\/jobs\/\d+$/);
  await expect(outcome(page)).toContainText('done', { timeout: 60_000 });
}

test.describe('without a token', () => {
  test('nothing offers a change', async ({ page }) => {
    for (const path of ['/slots', '/groups', '/views/user_view', '/letters']) {
      await page.goto(path);
      await expect(page.locator('main form[method="post"]')).toHaveCount(0);
      await expect(page.locator('main').getByRole('link', { name: 'Log in' }).first()).toBeVisible();
    }
  });

  test('a change that is sent all the same is refused', async ({ page, baseURL }) => {
    const answer = await page.request.post('/letters/retry', { form: { all: 'yes' }, headers: { Origin: baseURL }, maxRedirects: 0 });
    expect(answer.status()).toBe(401);
    const foreign = await page.request.post('/login', { form: { token: process.env.CONSOLE_TOKEN }, headers: { Origin: 'http://elsewhere.example' }, maxRedirects: 0 });
    expect(foreign.status()).toBe(403);
  });
});

test.describe('with a wrong token', () => {
  test.use({ expectedComplaint: '403' });
  test('nobody comes in, and the page says why', async ({ page }) => {
    await page.goto('/login');
    await page.getByLabel('Token').fill('not-a-token');
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('alert')).toContainText('Nobody has this token');
  });
});

test.describe('as an operator', () => {
  test.beforeEach(async ({ page }) => logIn(page));

  test('the token can be typed, and the session ended, without a mouse', async ({ page }) => {
    await tabTo(page, page.getByRole('button', { name: 'Log out' }));
    await page.keyboard.press('Enter');
    await expect(page.getByRole('banner').getByRole('link', { name: 'Log in' })).toBeVisible();
    await page.goto('/login');
    await expect(page.getByLabel('Token')).toBeFocused();
    await page.keyboard.type(process.env.CONSOLE_TOKEN);
    await page.keyboard.press('Enter');
    await expect(page.getByRole('button', { name: 'Log out' })).toBeVisible();
  });

  test('a relay is checked with the mouse, and paused and resumed with the keyboard', async ({ page }) => {
    await page.getByRole('navigation', { name: 'Pages' }).getByRole('link', { name: 'Slots' }).click();
    const relay = page.locator('#relay-users');
    await relay.getByRole('button', { name: 'Check everything' }).click();
    await expectDone(page);
    await expect(page.locator('pre.output')).toContainText('continues the checkpoint');
    await page.getByRole('link', { name: 'Back' }).click();
    await expect(title(page)).toContainText('Slots');

    await tabTo(page, relay.getByLabel('Reason for a pause'));
    await page.keyboard.type('the browser test');
    await page.keyboard.press('Enter');
    await expectDone(page);
    await page.goto('/slots');
    await expect(relay).toContainText('paused', { timeout: 30_000 });
    const resume = relay.getByRole('button', { name: 'Resume publishing' });
    await expect(async () => {
      await page.reload();
      await expect(resume).toBeVisible({ timeout: 1000 });
    }).toPass({ timeout: 30_000 });
    await tabTo(page, resume);
    await page.keyboard.press('Enter');
    await expectDone(page);
  });

  test.describe('after a mistake', () => {
    test.use({ expectedComplaint: '422' });
    test('a replay with another name than the group\'s changes nothing', async ({ page }) => {
      await page.goto('/groups/replay?topic=user-events&from=earliest');
      await page.getByLabel(/Type the group/).fill('another-group');
      await page.getByRole('button', { name: 'Read these events again' }).click();
      await expect(page.locator('body')).toContainText(/nothing is changed/i);
    });
  });

  test('events are read again after a preview and the typed name of the group', async ({ page }) => {
    await page.goto('/groups');
    await page.getByLabel('Topic').selectOption('user-events');
    await page.getByRole('button', { name: 'Preview' }).click();
    await expect(title(page)).toContainText('Preview');
    await expect(page.locator('pre.output')).toContainText('user-events');
    await tabTo(page, page.getByLabel(/Type the group/));
    await page.keyboard.type('view-builder');
    await page.keyboard.press('Enter');
    await expectDone(page);
  });

  test('the views are verified, and a view is paused, resumed and rebuilt', async ({ page }) => {
    await page.goto('/views');
    await page.getByRole('button', { name: 'Verify the views' }).click();
    await expect(page).toHaveURL(/\/jobs\/\d+$/);
    // Letters wait: so the report may tell of rows whose events are still on their way, with another exit code than 0.
    await expect(outcome(page)).toContainText(/done|exit code/, { timeout: 60_000 });
    await expect(page.locator('pre.output')).toContainText('user_view');

    await page.goto('/views');
    await page.getByRole('link', { name: 'user_view' }).first().click();
    await expect(page.locator('pre.sql').first()).toContainText('user_view');
    await page.getByLabel('Reason for a pause').fill('the browser test');
    await page.getByRole('button', { name: 'Pause' }).click();
    await expectDone(page);
    const resume = page.getByRole('button', { name: 'Resume' });
    await expect(async () => {
      await page.goto('/views/user_view');
      await expect(resume).toBeVisible({ timeout: 1000 });
    }).toPass({ timeout: 30_000 });
    await tabTo(page, resume);
    await page.keyboard.press('Enter');
    await expectDone(page);

    await page.goto('/views/user_view');
    await page.getByLabel(/Type the view/).fill('user_view');
    await page.getByRole('button', { name: /Rebuild/ }).click();
    await expectDone(page);
  });

  test('a letter is retried, and given up with a reason', async ({ page }) => {
    await page.goto('/letters');
    const letters = page.getByRole('region', { name: /Letters, in the order/ });
    await expect(letters.locator('tbody tr')).toHaveCount(3);
    await page.getByRole('button', { name: 'Retry all letters' }).click();
    await expect(page).toHaveURL(/\/jobs\/\d+$/);
    // They are as dead as before.
    await expect(outcome(page)).toContainText(/exit code|done/, { timeout: 60_000 });

    await page.goto('/letters');
    // With the keyboard alone: the second letter of user 2 and the change behind it wait for the first.
    await tabTo(page, letters.locator('tbody tr').first().getByRole('rowheader').getByRole('link'));
    await page.keyboard.press('Enter');
    await expect(title(page)).toContainText('Dead letter');
    const id = page.url().split('/').pop();
    await tabTo(page, page.locator('summary', { hasText: 'Discard it' }));
    await page.keyboard.press('Enter');
    await tabTo(page, page.getByLabel(/^Why/));
    await page.keyboard.type('written past the service');
    await tabTo(page, page.getByLabel(/to confirm/));
    await page.keyboard.type(id);
    await page.keyboard.press('Enter');
    await expect(page).toHaveURL(/\/jobs\/\d+$/);
    await expect(outcome(page)).toContainText(/exit code|done/, { timeout: 60_000 });
    await page.goto('/letters?which=discarded');
    await expect(page.locator('main')).toContainText('written past the service');
  });

  test('the audit has who did what, with what came of it', async ({ page }) => {
    await page.goto('/audit');
    for (const words of ['dead-letters discard', 'dead-letters retry --all', 'view-builder rebuild', 'view-builder pause', 'view-builder replay', 'outbox-relay pause']) {
      await expect(page.locator('main')).toContainText(words);
    }
    await expect(page.locator('main')).toContainText('quickstart');
  });
});
